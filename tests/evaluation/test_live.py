"""The weights in memory are bit for bit those that `amatax merge` writes and transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.errors import AmataxError, CheckpointError, InputChangedError
from amatax.evaluation import memory, places
from amatax.evaluation.live import LiveModel
from amatax.evaluation.memory import live_bytes
from amatax.planning.plan import make_plan
from amatax.recipes.gallery import gallery
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Recipe
from tests.adapters import lora, save_adapter, save_model
from tests.conftest import save_siblings, tiny_llama
from tests.fitting.test_merged_model import CONFIGS, SMALL, WORDS

MODELS: dict[str, Any] = CONFIGS | {
    "phi3, joined on disk": lambda: transformers.Phi3Config(
        **SMALL, num_key_value_heads=2, intermediate_size=48, pad_token_id=0
    ),
    "qwen3 moe, experts of odd sizes": lambda: transformers.Qwen3MoeConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=40, moe_intermediate_size=24, num_experts=3, head_dim=8
    ),
    "gemma3, tied": lambda: transformers.Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8
    ),
}


def family(folder: Path, name: str, dtype: str = "bfloat16") -> dict[str, Any]:
    """A recipe over siblings of some architecture."""
    save_siblings(folder, MODELS[name](), dtype=dtype, spread=0.1)
    return {"models": {"sft": str(folder / "sft"), "rlhf": str(folder / "rlhf")}, "merge": {"ratios": WORDS}}


def same_as_merged(live: LiveModel, recipe: Recipe, folder: Path) -> None:
    """Against the folder that the command writes, loaded by transformers: names, dtypes and bits."""
    shutil.rmtree(folder, ignore_errors=True)
    api.merge(recipe, folder)
    written = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    found = live.model.state_dict()
    assert found.keys() == written.keys()
    for name, want in written.items():
        assert found[name].dtype == want.dtype, name
        assert torch.equal(bits(found[name]), bits(want)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("name", gallery())
def test_every_method(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(gallery()[name])
    for dtype in (None, "float32"):
        wanted = recipe.model_copy(update={"output": recipe.output.model_copy(update={"dtype": dtype})})
        live = LiveModel.open(make_plan(wanted), threads=2)
        live.set(0.9)
        live.set(wanted)  # there and back
        same_as_merged(live, wanted, tmp_path / "out")
        live.check()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_transformers_has_a_tensor(tmp_path: Path, name: str, dtype: str) -> None:
    """As it is, tied, transposed, joined with others: where each lies is found, and every ratio arrives there."""
    made = family(tmp_path, name, dtype)
    live = LiveModel.open(make_plan(load_recipe(made)))
    live.set(1.0)
    live.check()
    for words in (WORDS, {**WORDS, "blocks": [0.25, 0.5, 0.0, 1.0], "embeddings": 0.125}):
        recipe = load_recipe({**made, "merge": {"ratios": words}})
        live.set(recipe)
        same_as_merged(live, recipe, tmp_path / "out")


def test_experts_that_an_override_tells_apart(tmp_path: Path) -> None:
    """Tensors of different ratios in one parameter of transformers: what a fit must refuse, a merge does."""
    made = family(tmp_path, "mixtral, experts fused at load")
    overrides = [{"match": "*.experts.1.w3*", "ratio": 0.9}, {"match": "*.experts.2.*", "ratio": 0.0}]
    recipe = load_recipe({**made, "merge": {"ratios": {**WORDS, "overrides": overrides}}})
    live = LiveModel.open(make_plan(recipe))
    live.set(0.5)
    live.set(recipe)
    same_as_merged(live, recipe, tmp_path / "out")


ADAPTERS = {
    "LoRA": (lambda: tiny_llama(), lora("q_proj", "v_proj", "down_proj")),
    "DoRA": (lambda: tiny_llama(), lora("q_proj", "lm_head", use_dora=True)),
    "tied": (lambda: tiny_llama(tie_word_embeddings=True), lora("q_proj", "embed_tokens")),
    "experts": (CONFIGS["mixtral, experts fused at load"], lora("q_proj")),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter(tmp_path: Path, name: str) -> None:
    """What both models share is held once."""
    config, adapter = ADAPTERS[name]
    described = config()
    described.architectures = described.architectures or ["MixtralForCausalLM"]
    save_adapter(save_model(tmp_path / "model", described), adapter, tmp_path / "lora")
    rlhf = {"model": str(tmp_path / "model"), "adapter": str(tmp_path / "lora")}
    recipe = load_recipe({"models": {"sft": str(tmp_path / "model"), "rlhf": rlhf}, "merge": {"ratios": WORDS}})
    plan = make_plan(recipe)
    live = LiveModel.open(plan)
    assert live.nbytes == live_bytes(plan).held < 1.1 * plan.checkpoints["sft"].nbytes
    for ratios in (1.0, 0.0, 0.4):
        live.set(ratios)
        live.check()
    live.set(recipe)
    same_as_merged(live, recipe, tmp_path / "out")


def test_a_head_of_its_own(tmp_path: Path) -> None:
    """`untie`: the model in memory is untied, as the written config says."""
    recipe = family(tmp_path, "qwen2, tied, biases")
    tensors = load_file(tmp_path / "rlhf" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.25
    save_file(tensors, tmp_path / "rlhf" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "rlhf" / "config.json").read_text())
    (tmp_path / "rlhf" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    wanted = load_recipe({**recipe, "merge": {"ratios": WORDS, "untie": True}})
    live = LiveModel.open(make_plan(wanted))
    live.set(0.75)
    live.set(wanted)
    assert live.model.lm_head.weight.data_ptr() != live.model.model.embed_tokens.weight.data_ptr()
    same_as_merged(live, wanted, tmp_path / "out")


def test_rows_that_base_lacks(tmp_path: Path) -> None:
    recipe = family(tmp_path, "llama")
    shutil.copytree(tmp_path / "sft", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    rows = {name: t[:-7].clone() if len(t) == 160 else t - 0.125 for name, t in tensors.items()}
    save_file(rows, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "vocab_size": 153}))
    models = {**recipe["models"], "base": str(tmp_path / "base")}
    for method in ("ties", "dare"):
        merge = {"method": method, "ratios": WORDS, "vocabulary": "common"}
        wanted = load_recipe({"models": models, "merge": merge})
        live = LiveModel.open(make_plan(wanted))
        live.set(0.9)
        live.set(wanted)
        same_as_merged(live, wanted, tmp_path / "out")


def test_from_one_method_to_another(tmp_path: Path) -> None:
    """What the first did not need is read when it is needed."""
    recipe = load_recipe(gallery()["ties"])
    average = recipe.model_copy(update={"merge": load_recipe(gallery()["quickstart"]).merge})
    live = LiveModel.open(make_plan(average))
    held = live.nbytes
    live.set(recipe)
    assert live.nbytes == held * 3 // 2
    same_as_merged(live, recipe, tmp_path / "out")
    live.set(average)
    same_as_merged(live, average, tmp_path / "out")


def test_nothing_grows_and_the_inputs_stay(tmp_path: Path) -> None:
    recipe = load_recipe(family(tmp_path, "llama"))
    live = LiveModel.open(make_plan(recipe))
    held = {place: tensor.clone() for place, tensor in live._held._tensors.items()}
    before = [tensor.data_ptr() for tensor in live.model.state_dict().values()]
    for i in range(30):
        live.set(i / 30)
    assert [tensor.data_ptr() for tensor in live.model.state_dict().values()] == before
    assert live._held._tensors.keys() == held.keys()
    assert all(torch.equal(held[place], tensor) for place, tensor in live._held._tensors.items())
    live.check()


def test_what_has_drifted_is_named(tmp_path: Path) -> None:
    live = LiveModel.open(make_plan(load_recipe(family(tmp_path, "mixtral, experts fused at load"))))
    live.check()
    experts = next(p for n, p in live.model.named_parameters() if "layers.2" in n and "gate_up" in n)
    experts.data[1, -1, 3] += 1
    with pytest.raises(AmataxError, match=r"1 tensors differ, first 'model.layers.2.*experts.1.w3"):
        live.check()
    live.set(0.3)
    live.check()


def test_a_checkpoint_that_changes_is_noticed(tmp_path: Path) -> None:
    recipe = load_recipe(family(tmp_path, "llama"))
    live = LiveModel.open(make_plan(recipe))
    file = tmp_path / "rlhf" / "model.safetensors"
    save_file({n: t + 1 for n, t in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(InputChangedError, match=r"rlhf/model.safetensors has changed"):
        live.set(0.2)


def test_other_recipes_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe(family(tmp_path, "llama"))
    live = LiveModel.open(make_plan(recipe))
    other = recipe.model_copy(update={"output": recipe.output.model_copy(update={"dtype": "float32"})})
    with pytest.raises(AmataxError, match="output is another"):
        live.set(other)
    turned = recipe.model_copy(update={"models": recipe.models.model_copy(update={"rlhf": recipe.models.sft})})
    with pytest.raises(AmataxError, match=r"rlhf is .* was loaded"):
        live.set(turned)


def test_a_turned_or_cut_tensor_is_found() -> None:
    """Boxes of a stacked, joined and transposed parameter, and one that is no view."""
    ids = torch.tensor([[[1.0, 1, 2]] * 2, [[3, 3, 4]] * 2])
    found = dict(places._boxes("p", ids))
    assert found == {i + 1: (slice(i // 2, i // 2 + 1), slice(0, 2), slice(i % 2 * 2, 2 + i % 2)) for i in range(4)}
    with pytest.raises(CheckpointError, match="cannot be merged in its place"):
        places._boxes("p", torch.tensor([[1.0, 2], [2, 1]]))
    grid = torch.arange(6).view(2, 3)
    assert places._axis("t", (grid % 3 + 4).float()) == (1, 4, 3)
    assert places._axis("t", (grid // 3).float()) == (0, 0, 2)
    with pytest.raises(CheckpointError):
        places._axis("t", torch.tensor([0.0, 2, 1]))


def test_too_little_memory_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amatax.fitting import estimate

    plan = make_plan(load_recipe(family(tmp_path, "llama")))
    held, live, _ = live_bytes(plan)
    assert (held, live) == (2 * plan.checkpoints["sft"].nbytes, plan.checkpoints["sft"].nbytes)
    monkeypatch.setattr(estimate, "free_bytes", lambda device: held + live - 1)
    with pytest.raises(AmataxError, match="GB are free") as caught:
        LiveModel.open(plan)
    assert "amatax merge" in caught.value.hint
    monkeypatch.setattr(estimate, "free_bytes", lambda device: held + live)
    memory.check_live_memory(plan, torch.device("cpu"))
