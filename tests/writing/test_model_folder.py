"""What a finished folder holds: side files byte for byte, a config true to the weights, index, card, record."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from amatax import api
from tests.conftest import Run, write_recipe

SIDE_FILES = {
    "tokenizer.json": b'{"a": 1}\n',
    "tokenizer_config.json": b'{"tokenizer_class":"X"}',
    "special_tokens_map.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/rag.jinja": b"{{ rag }}",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "preprocessor_config.json": b"{ }",
    "processor_config.json": b"{}",
    "video_preprocessor_config.json": b"{}",
    "modeling_acme.py": b"raise SystemExit('never run')\n",
    "layers/attention.py": b"raise SystemExit('never run')\n",
    "tokenization_acme.py": b"raise SystemExit('never run')\n",
    "normalizer.json": b"{}",
    "LICENSE": b"Apache",
    "license.txt": b"Llama",
    "USE_POLICY.md": b"no weapons",
}
NOT_COPIED = [
    "optimizer.pt",
    "trainer_state.json",
    "README.md",
    "pytorch_model.bin.old",
    ".gitattributes",
    "events.out.tfevents",
]


@pytest.fixture
def furnished(siblings: Path) -> Path:
    """Siblings with everything that may lie in a model folder."""
    for name, content in SIDE_FILES.items():
        path = siblings / "sft" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for name in NOT_COPIED:
        (siblings / "sft" / name).write_bytes(b"training left this")
    return siblings


def test_side_files_are_copied_byte_for_byte(furnished: Path) -> None:
    api.merge(furnished / "recipe.yaml", furnished / "out")
    for name, content in SIDE_FILES.items():
        assert (furnished / "out" / name).read_bytes() == content
    assert (furnished / "out" / "generation_config.json").read_bytes() == (
        furnished / "sft" / "generation_config.json"
    ).read_bytes()
    for name in set(NOT_COPIED) - {"README.md"}:
        assert not (furnished / "out" / name).exists()


def test_the_tokenizer_may_come_from_the_other_model(furnished: Path) -> None:
    (furnished / "rlhf" / "tokenizer.json").write_bytes(b'{"rlhf": 1}')
    (furnished / "rlhf" / "tokenization_acme.py").write_bytes(b"rlhf = 1")
    recipe = furnished / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "output: {tokenizer: rlhf}\n")
    api.merge(recipe, furnished / "out")
    assert (furnished / "out" / "tokenizer.json").read_bytes() == b'{"rlhf": 1}'
    assert not (furnished / "out" / "chat_template.jinja").exists()
    assert (furnished / "out" / "modeling_acme.py").exists()
    assert (furnished / "out" / "tokenization_acme.py").read_bytes() == b"rlhf = 1"


def test_progress_counts_every_byte_that_is_read(siblings: Path) -> None:
    class Counter(api.Watcher):
        total = read = 0

        def start(self, total: int) -> None:
            self.total = total

        def advance(self, n: int) -> None:
            self.read += n

    counter = Counter()
    result = api.merge(siblings / "recipe.yaml", siblings / "out", threads=1, watcher=counter)
    assert counter.read == counter.total == result.plan.reads


def test_a_true_config_is_copied_untouched(siblings: Path) -> None:
    api.merge(siblings / "recipe.yaml", siblings / "out")
    assert (siblings / "out" / "config.json").read_bytes() == (siblings / "sft" / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("config", "loaded_by"),
    [
        ({}, "AutoModelForCausalLM"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration"),
        ({"auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}}, "AutoModelForCausalLM"),
    ],
)
def test_card_and_summary_name_the_class_that_loads_it(
    siblings: Path, amatax: Callable[..., Run], config: dict[str, object], loaded_by: str
) -> None:
    for role in ("sft", "rlhf"):
        path = siblings / role / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    done = amatax("merge", "recipe.yaml", "out")
    assert f"transformers.{loaded_by}.from_pretrained(" in done.out
    assert f"model = {loaded_by}.from_pretrained(" in (siblings / "out" / "README.md").read_text()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_config_says_the_dtype_that_was_written(siblings: Path, key: str) -> None:
    path = siblings / "sft" / "config.json"
    config = json.loads(path.read_text())
    del config["dtype"]
    path.write_text(json.dumps({**config, key: "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}}))
    recipe = siblings / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "output: {dtype: float32}\n")
    api.merge(recipe, siblings / "out")
    written = json.loads((siblings / "out" / "config.json").read_text())
    assert written[key] == "float32"
    assert written["text_config"] == {"dtype": "float32", "x": 1}
    assert {tensor.dtype for tensor in load_file(siblings / "out" / "model.safetensors").values()} == {torch.float32}


def test_shards_and_index(siblings: Path) -> None:
    recipe = siblings / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "output: {max_shard_size: 100KB}\n")
    result = api.merge(recipe, siblings / "out")
    index = json.loads((siblings / "out" / "model.safetensors.index.json").read_text())
    parameters = 0
    for name, file in index["weight_map"].items():
        with safe_open(siblings / "out" / file, "pt") as opened:
            parameters += opened.get_tensor(name).numel()
            assert opened.metadata() == {"format": "pt"}
    assert index["metadata"] == {"total_parameters": parameters, "total_size": 2 * parameters}
    assert set(index["weight_map"].values()) == {s.file for s in result.plan.shards}
    assert max(s.nbytes for s in result.plan.shards) < 130_000


def test_files_obey_the_umask(siblings: Path) -> None:
    old = os.umask(0o027)
    try:
        api.merge(siblings / "recipe.yaml", siblings / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((siblings / "out" / "model.safetensors").stat().st_mode) == 0o640


def test_card_names_no_local_path(siblings: Path) -> None:
    api.merge(siblings / "recipe.yaml", siblings / "out")
    card = (siblings / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["merge", "amatax"]
    assert front["library_name"] == "transformers"
    assert "base_model" not in front
    assert str(siblings) not in card
    assert "| 0-1 | 0.7 | `██████████████······` |" in card


def test_record_has_a_checksum_of_every_tensor(siblings: Path) -> None:
    import xxhash

    api.merge(siblings / "recipe.yaml", siblings / "out")
    record = json.loads((siblings / "out" / "amatax_record.json").read_text())
    with safe_open(siblings / "out" / "model.safetensors", "pt") as file:
        assert set(record["tensors"]) == set(file.keys())
        name = "model.layers.3.mlp.up_proj.weight"
        data = bytes(file.get_tensor(name).view(torch.uint8).flatten().tolist())
    assert record["tensors"][name]["output"] == xxhash.xxh3_128_hexdigest(data)
    assert set(record["tensors"][name]) == {"ratio", "sft", "rlhf", "output"}


def test_only_what_is_needed_is_read(siblings: Path) -> None:
    planned = api.plan(write_recipe(siblings, {"blocks": [1, 0.5, 0], "head": 0, "embeddings": 1}), siblings / "out")
    assert set(planned.tensors["model.layers.0.mlp.up_proj.weight"].sources) == {"rlhf"}
    assert set(planned.tensors["model.layers.5.mlp.up_proj.weight"].sources) == {"sft"}
    assert planned.reads < 0.7 * sum(c.nbytes for c in planned.checkpoints.values())


def test_integers_are_copied_and_a_difference_is_noted(siblings: Path) -> None:
    from safetensors.torch import save_file

    for role, value in (("sft", 1), ("rlhf", 2)):
        tensors = {k: v for f in sorted((siblings / role).glob("*.safetensors")) for k, v in load_file(f).items()}
        for file in (siblings / role).glob("model*"):
            file.unlink()
        tensors["model.steps"] = torch.tensor([value] * 5)
        tensors["model.mask"] = torch.tensor([True, False])
        save_file(tensors, siblings / role / "model.safetensors", {"format": "pt"})
    result = api.merge(siblings / "recipe.yaml", siblings / "out")
    assert load_file(siblings / "out" / "model.safetensors")["model.steps"].tolist() == [1] * 5
    assert any("model.steps" in note and "differ" in note for note in result.notes)


def test_rounding_of_the_output_dtype_is_measured(siblings: Path) -> None:
    result = api.merge(siblings / "recipe.yaml", siblings / "out")
    assert 0 < result.rounded_away < 0.2
    recipe = siblings / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "output: {dtype: float32}\n")
    assert api.merge(recipe, siblings / "wide").rounded_away == 0
