"""Adapters that cannot be used, or not on this model: refused from headers alone, each with what is wrong and the next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.adapters import lora, save_adapter, save_model, small_llama
from tests.faults.breaking import amatax_here, assert_clear, edit_json, merge_here

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter on it, and a recipe."""
    folder = tmp_path_factory.mktemp("made")
    model = save_model(folder / "model", small_llama())
    save_adapter(model, lora("q_proj", "down_proj"), folder / "lora")
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}, sort_keys=False))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for name in ("model", "lora"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "recipe.yaml", tmp_path)
    return tmp_path


def says(**changes: Any) -> Damage:
    return lambda lora: edit_json(lora / CONFIG, **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(lora: Path) -> None:
        held = load_file(lora / WEIGHTS)
        change(held)
        save_file(held, lora / WEIGHTS)

    return damage


def put(**named: torch.Tensor) -> Damage:
    """More tensors under the model's prefix; __ stands for a dot."""
    return tensors(lambda t: t.update({f"base_model.model.{name.replace('__', '.')}": x for name, x in named.items()}))


def renamed(old: str, new: str) -> Damage:
    return tensors(lambda t: [t.update({name.replace(old, new): t.pop(name)}) for name in list(t) if old in name])


CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ("no such folder",)),
    "no config": (lambda f: (f / CONFIG).unlink(), (CONFIG, "not an adapter")),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), (WEIGHTS,)),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), (WEIGHTS, "empty")),
    "no tensors": (lambda f: save_file({}, f / WEIGHTS), (WEIGHTS, "no tensors")),
    "config no JSON": (lambda f: (f / CONFIG).write_text("r: 8"), (CONFIG, "not valid JSON")),
    "config links out": (
        lambda f: ((f / CONFIG).unlink(), (f / CONFIG).symlink_to(f.parent / "model" / "config.json")),
        (CONFIG, "outside"),
    ),
    "weights link out": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(f.parent / "model" / "model.safetensors")),
        (WEIGHTS, "outside"),
    ),
    "another kind": (says(peft_type="LOHA"), ("'LOHA'", "merge_and_unload")),
    "no kind": (says(peft_type=None), ("type None",)),
    "experts in one tensor": (
        says(target_parameters=["mlp.experts.gate_up_proj"]),
        ("target_parameters", "merge_and_unload"),
    ),
    "layers repeated": (says(layer_replication=[[0, 2], [0, 2]]), ("repeats layers",)),
    "single tokens": (says(trainable_token_indices=[1]), ("trainable_token_indices",)),
    "aLoRA": (says(alora_invocation_tokens=[1]), ("aLoRA",)),
    "PiSSA": (says(init_lora_weights="pissa_niter_4"), ("pissa_niter_4", "path_initial_model_for_weight_conversion")),
    "PiSSA in a list": (says(init_lora_weights=["pissa"]), ("init_lora_weights", "['pissa']")),
    "a flag in words": (says(use_rslora="false"), ("use_rslora is 'false'", "neither true nor false")),
    "flags in numbers": (says(use_dora=1, fan_in_fan_out=[]), ("2 faults", "use_dora is 1", "fan_in_fan_out is []")),
    "two faults of the config": (
        says(use_bdlora={"x": 1}, init_lora_weights="olora"),
        ("2 faults", "BD-LoRA", "olora"),
    ),
    "rank a word": (says(r="eight"), ("'eight'",)),
    "rank zero": (says(r=0), ("r: 0",)),
    "alpha a list": (says(lora_alpha=[8]), ("lora_alpha: [8]",)),
    "alpha infinite": (
        lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"lora_alpha": 6', '"lora_alpha": 1e999')),
        ("lora_alpha: inf",),
    ),
    "pattern a list": (says(rank_pattern=[1]), ("rank_pattern",)),
    "pattern no pattern": (says(rank_pattern={"(": 4}), ("'('", "regular expression")),
    "another rank": (says(r=8), ("says, 4:", "has 4", "says 8")),
    "DoRA without magnitudes": (says(use_dora=True), (", 4:", "no magnitudes", "use_dora")),
    "magnitudes without DoRA": (
        tensors(lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(40)})),
        ("with magnitudes", "use_dora"),
    ),
    "a factor alone": (
        tensors(lambda t: t.pop(f"{Q}.lora_B.weight")),
        ("lack a part", "layers.0.self_attn.q_proj", "lora_A.weight"),
    ),
    "factors of two adapters": (
        tensors(lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(40, 5)})),
        ("do not belong together", "[4, 40]", "[40, 5]"),
    ),
    "a factor never gathered": (
        tensors(lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(0)})),
        ("do not belong together", "[0]"),
    ),
    "another model's sizes": (
        tensors(lambda t: [t.update({n: torch.ones(4, 77)}) for n in list(t) if n.endswith("q_proj.lora_A.weight")]),
        ("does not fit, 2:", "'model.layers.0.self_attn.q_proj.weight' is [40, 40]", "[4, 77]", "another model"),
    ),
    "another model's names": (
        renamed("self_attn.q_proj", "attention.wq"),
        (", 2:", "attention.wq", "does not have"),
    ),
    "another model's layers": (renamed("layers.1", "layers.7"), (", 2:", "layers.7", "another model")),
    "a vision tower's": (renamed("model.layers", "vision.encoder.layers"), (", 4:", "vision.encoder.layers")),
    "a vision tower's of the same stack's name": (
        renamed("model.layers", "model.vision_tower.encoder.layers"),
        (", 4:", "vision_tower.encoder.layers"),
    ),
    "an encoder's": (renamed("model.layers", "model.encoder.layers"), (", 4:", "model.encoder.layers")),
    "a vision tower's norm": (
        put(model__vision_tower__norm__weight=torch.ones(40)),
        ("'model.vision_tower.norm.weight'",),
    ),
    "a whole tensor twice": (
        put(model__norm__weight=torch.ones(40), norm__weight=torch.zeros(40)),
        ("several tensors", "'base_model.model.model.norm.weight'", "'base_model.model.norm.weight'"),
    ),
    "with the prefix and without": (
        tensors(
            lambda t: t.update({n: torch.ones(40) for n in ("base_model.model.model.norm.weight", "model.norm.weight")})
        ),
        ("several tensors", "'base_model.model.model.norm.weight'", "and 'model.norm.weight'"),
    ),
    "a factor with the prefix and without": (
        tensors(lambda t: t.update({f"{Q}.lora_A.weight".removeprefix("base_model.model."): torch.ones(4, 40)})),
        ("several tensors", f"'{Q}.lora_A.weight'", "'model.layers.0.self_attn.q_proj.lora_A.weight'"),
    ),
    "a weight adapted twice": (
        tensors(lambda t: t.update({n.replace(".model.layers", ".layers"): t[n].clone() for n in list(t) if Q in n})),
        ("adapted twice", f"'{Q}.lora_B.weight'", f"'{Q.replace('.model.layers', '.layers')}.lora_B.weight'"),
    ),
    "fused in memory": (renamed("q_proj", "qkv_proj"), ("qkv_proj", "k_proj, o_proj, q_proj", "merge_and_unload")),
    "a module to save that is not there": (put(score__weight=torch.ones(2, 40)), ("'score.weight'", "does not have")),
    "resized embeddings": (
        put(model__embed_tokens__weight=torch.ones(128, 40)),
        ("[99, 40]", "[128, 40]", "resize_token_embeddings(128)"),
    ),
    "codes": (tensors(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 40, dtype=torch.int8)})), ("I8",)),
    "all at once": (
        lambda f: (says(r=8)(f), renamed("down_proj", "down")(f)),
        ("2 faults", "says 8", "'model.layers.0.mlp.down.weight'"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, place: Path) -> None:
    damage, words = CASES[name]
    damage(place / "lora")
    for args in ((), ("--dry-run",)):
        answer = merge_here(place, *args)
        assert_clear(answer)
        for word in words:
            assert word in answer.err, f"{word!r} is not in the message\n{answer.err}"
        assert f"{place}/recipe.yaml:5 (models.rlhf.adapter)" in answer.err
    assert not (place / "out").exists()


def test_embeddings_of_their_own_on_a_tied_model(tmp_path: Path) -> None:
    """PEFT's merge leaves the head as it was, and the files hold one matrix for both."""
    model = save_model(tmp_path / "model", small_llama(tie_word_embeddings=True))
    wanted = save_adapter(model, lora("q_proj", modules_to_save=["embed_tokens"]), tmp_path / "lora")
    assert "lm_head.weight" in wanted
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}))
    answer = merge_here(tmp_path)
    assert_clear(answer)
    assert "'model.embed_tokens.weight'" in answer.err and "the head stays" in answer.err


def test_a_head_of_its_own_on_a_tied_model(tmp_path: Path) -> None:
    """modules_to_save gives the head a matrix that a tied model has no place for."""
    model = save_model(tmp_path / "model", small_llama(tie_word_embeddings=True))
    save_adapter(model, lora("q_proj", modules_to_save=["lm_head"]), tmp_path / "lora")
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}))
    answer = merge_here(tmp_path)
    assert_clear(answer)
    assert "'lm_head.weight'" in answer.err and "ties to its embeddings" in answer.err


def test_a_bias_adapted_twice(tmp_path: Path) -> None:
    """Once for the model's own weight, once for a weight beside it that shares the bias on disk."""
    model = save_model(tmp_path / "model", small_llama(attention_bias=True))
    weights = tmp_path / "model" / "model.safetensors"
    held = load_file(weights)
    q = "model.layers.0.self_attn.q_proj"
    save_file(
        {**held, f"layers.0.{q.partition('.0.')[2]}.weight": held[f"{q}.weight"].clone()}, weights, {"format": "pt"}
    )
    save_adapter(model, lora("q_proj", lora_bias=True), tmp_path / "lora")
    other = Q.replace(".model.layers", ".layers")
    tensors(lambda t: t.update({n.replace(Q, other): t[n].clone() for n in list(t) if Q in n}))(tmp_path / "lora")
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}))
    answer = merge_here(tmp_path)
    assert_clear(answer)
    assert f"'{Q}.lora_B.bias'" in answer.err and f"'{other}.lora_B.bias'" in answer.err and "several" in answer.err


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_tied_matrix_on_disk_twice(tmp_path: Path, target: str) -> None:
    """One parameter for PEFT: a change of one of the two would untie them."""
    model = save_model(tmp_path / "model", small_llama(tie_word_embeddings=True))
    weights = tmp_path / "model" / "model.safetensors"
    held = load_file(weights)
    save_file({**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}, weights, {"format": "pt"})
    save_adapter(model, lora("q_proj", target), tmp_path / "lora")
    save_adapter(model, lora("q_proj"), tmp_path / "beside")
    for adapter in ("lora", "beside"):
        models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": f"./{adapter}"}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}))
        answer = merge_here(tmp_path)
        if adapter == "beside":  # it leaves them alone
            assert answer.code == 0, answer.err
        else:
            assert_clear(answer)
            assert "on disk twice" in answer.err and "save it again" in answer.err
            assert "'lm_head.weight'" in answer.err and "'model.embed_tokens.weight'" in answer.err


def test_an_adapter_on_a_model_of_fused_experts(tmp_path: Path) -> None:
    """transformers 5 has a layer's experts in one parameter, the files have them one by one."""
    from transformers import MixtralConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "num_local_experts": 2,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = save_model(tmp_path / "model", MixtralConfig(architectures=["MixtralForCausalLM"], **sizes, **heads))
    config = lora("q_proj", target_parameters=["mlp.experts.gate_up_proj"])
    save_adapter(model, config, tmp_path / "lora")
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": 0.5}}))
    answer = merge_here(tmp_path)
    assert_clear(answer)
    assert "target_parameters" in answer.err


def test_nan_in_an_adapter_is_named(place: Path) -> None:
    tensors(lambda t: t[f"{Q}.lora_B.weight"].fill_(float("nan")))(place / "lora")
    answer = merge_here(place)
    assert_clear(answer)
    assert (
        "lora/adapter_model.safetensors" in answer.err and "q_proj" in answer.err and "--allow-nonfinite" in answer.err
    )


def test_an_adapter_in_a_models_place(place: Path) -> None:
    """The message shows the form that takes it."""
    recipe = {"models": {"sft": "./model", "rlhf": "./lora"}, "merge": {"ratios": 0.5}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answer = merge_here(place)
    assert_clear(answer)
    assert "a LoRA adapter, not a whole model" in answer.err and "adapter:" in answer.err
    answer = amatax_here("inspect", place / "model", place / "lora")
    assert_clear(answer)
    assert "adapter:" in answer.err


def test_a_model_in_an_adapters_place(place: Path) -> None:
    shutil.rmtree(place / "lora")
    shutil.copytree(place / "model", place / "lora")
    answer = merge_here(place)
    assert_clear(answer)
    assert "a whole model" in answer.err


def test_an_adapter_that_changes_during_the_merge_is_another_merge(place: Path) -> None:
    """Its config alone decides the scale: another alpha is another identity, and a finished output is not taken for it."""
    first = merge_here(place)
    assert first.code == 0, first.err
    assert "finished already" in merge_here(place).out
    said = json.loads((place / "lora" / CONFIG).read_text())
    says(lora_alpha=said["lora_alpha"] * 2)(place / "lora")
    answer = merge_here(place)
    assert_clear(answer)
    assert "another merge" in answer.err


def test_an_adapter_from_torch_save(place: Path) -> None:
    """As old versions of PEFT wrote it: read where it lies, never unpickled further."""
    assert merge_here(place).code == 0
    held = load_file(place / "lora" / WEIGHTS)
    (place / "lora" / WEIGHTS).unlink()
    torch.save(held, place / "lora" / "adapter_model.bin")
    done = amatax_here("merge", place / "recipe.yaml", place / "again")
    assert done.code == 0, done.err
    assert (place / "out" / "model.safetensors").read_bytes() == (place / "again" / "model.safetensors").read_bytes()


def test_the_output_may_not_be_the_adapters_folder(place: Path) -> None:
    answer = amatax_here("merge", place / "recipe.yaml", place / "lora")
    assert_clear(answer)
    assert "overlaps the input" in answer.err
