"""amatax distill: what it refuses, in one message, leaving nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from amatax.errors import AmataxError, CheckpointError, DataError, OutputError
from tests.conftest import save_siblings, tiny_llama
from tests.fitting.distilling import Distill, Write, in_float32
from tests.fitting.family import FAMILY, REWARD


def test_a_token_more_is_no_fault(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    recipe = in_float32(tmp_path)
    file = tmp_path / "rlhf" / "tokenizer.json"
    text = json.loads(file.read_text())
    text["added_tokens"].append({**text["added_tokens"][0], "id": 928, "content": "<|more|>"})
    file.write_text(json.dumps(text))
    assert distill(some_prompts(1), recipe=recipe).summary.selected == 1


def test_bad_lines(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(3, {"prompt": ""})
    with pytest.raises(DataError, match="1 of 4 lines cannot be used"):
        distill(prompts)
    assert not list(tmp_path.glob("D.jsonl*"))
    result = distill(prompts, most_bad=0.3)
    assert result.summary.prompts == 3
    assert any("1 of 4 lines are skipped: line 4: the prompt is empty" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "--temperature -1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": 0, "n": 3}, "3 times the same response"),
        ({"top_p": 0}, "--top-p 0"),
        ({"top_p": 1.1}, "--top-p 1.1"),
        ({"n": 0}, "at least 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"top": 3}, "there is no reward"),
        ({"draw": -1}, "--draw -1"),
        ({"reward": REWARD, "reward_model": "x"}, "two rewards"),
        ({"role": "base"}, "--role base: the recipe names no such model"),
        ({"server_model": "x"}, "--server-model without --server"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_options_that_cannot_be(
    distill: Distill, some_prompts: Write, tmp_path: Path, options: Any, message: str
) -> None:
    prompts = some_prompts(1)
    with pytest.raises(AmataxError) as caught:
        distill(prompts, **options)
    assert message in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.glob("D.jsonl*"))


def test_outputs_that_are_taken(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    with pytest.raises(OutputError, match="a folder"):
        distill(prompts, ".")
    with pytest.raises(OutputError, match="the prompts themselves"):
        distill(prompts, "prompts.jsonl")
    (tmp_path / "D.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match="there already"):
        distill(prompts)
    assert (tmp_path / "D.jsonl").read_text() == "mine\n"
    assert not list(tmp_path.glob("D.jsonl.*"))
    distill(prompts, overwrite=True)
    with pytest.raises(
        OutputError, match=r"made by another run \(differs in max_new_tokens 12 -> 13, seed 0 -> 5\)"
    ) as caught:
        distill(prompts, seed=5, max_new_tokens=13)
    assert "--overwrite" in caught.value.hint
    (tmp_path / "D.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match="changed since it was distilled"):
        distill(prompts)


def test_models_that_cannot_answer(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """No tokenizer; another vocabulary; no template; a checkpoint of NaN; no room: one clear error each, and nothing left."""
    prompts = some_prompts(1)
    save_siblings(tmp_path, tiny_llama())
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("models: {sft: ./sft, rlhf: ./rlhf}\n")
    with pytest.raises(CheckpointError, match="no tokenizer that transformers loads"):
        distill(prompts, recipe=recipe)
    for role in ("sft", "rlhf"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(FAMILY / role / name, tmp_path / role / name)
    with pytest.raises(DataError, match="beyond the model's 160 embeddings"):
        distill(prompts, recipe=recipe)
    text = json.loads((tmp_path / "rlhf" / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "rlhf" / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"the tokenizers of .* differ: 2 of 928 tokens"):
        distill(prompts, recipe=recipe)
    for role in ("sft", "rlhf"):
        (tmp_path / role / "chat_template.jinja").unlink()
        shutil.copy(FAMILY / role / "tokenizer.json", tmp_path / role / "tokenizer.json")
    with pytest.raises(DataError, match="no chat template"):
        distill(prompts, recipe=recipe)
    assert not list(tmp_path.glob("D.jsonl*"))


def test_no_room_and_not_a_number(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    recipe = in_float32(tmp_path)
    with pytest.raises(DataError, match=r"line 2: the prompt has .* and the model 256 positions"):
        distill(some_prompts(1, {"prompt": "hen " * 300}), recipe=recipe)
    result = distill(some_prompts(1, {"prompt": "hen " * 240}), recipe=recipe, max_new_tokens=100, batch_size=1)
    assert result.summary.tokens.max <= 100
    weights = tmp_path / "rlhf" / "model.safetensors"
    save_file({k: torch.full_like(v, torch.nan) for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(AmataxError, match="logits are not finite"):
        distill(some_prompts(1), "nan.jsonl", recipe=recipe)
    assert not list(tmp_path.glob("nan.jsonl*"))


def test_out_of_memory_names_the_batch_size() -> None:
    import torch

    from amatax.fitting.memory import memory_hint, sampling_hint

    cpu = torch.device("cpu")
    with (
        pytest.raises(AmataxError, match="out of memory on cpu with 16 samples") as caught,
        memory_hint(*sampling_hint(16, cpu)),
    ):
        torch.empty(1 << 60, dtype=torch.int8)  # an exbibyte: the allocator's own words
    assert "--batch-size 8" in caught.value.hint
    with pytest.raises(RuntimeError, match="something else"), memory_hint("", ""):
        raise RuntimeError("something else")
