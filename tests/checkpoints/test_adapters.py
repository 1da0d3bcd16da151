"""PEFT adapters as inputs: what streams out is what PEFT's own merge_and_unload gives, whatever the adapter is like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.adapters import (
    largest_difference,
    lora,
    save_adapter,
    save_model,
    small_llama,
    tensors,
    tiny_gpt2,
)
from tests.conftest import run_amatax

ULPS = 2e-6  # of numbers of size 1 in float32: PEFT rounds each step there, we once at the end


def write(folder: Path, models: Any, **merge: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"models": models, "merge": merge}, sort_keys=False))
    return path


def adapted(adapter: str = "./lora", model: str = "./model") -> dict[str, str]:
    return {"model": model, "adapter": adapter}


ATTENTION = ("q_proj", "v_proj")
LLAMAS = {
    "LoRA": lora(*ATTENTION, "down_proj"),
    "rank-stabilised": lora(*ATTENTION, "up_proj", use_rslora=True),
    "DoRA": lora(*ATTENTION, "down_proj", use_dora=True),
    "DoRA on embeddings": lora("q_proj", "embed_tokens", use_dora=True),
    "patterns": lora(
        *ATTENTION,
        "o_proj",
        rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.o_proj": 8},
        alpha_pattern={"v_proj": 3, "layers.0.self_attn.q_proj": 1},
    ),
    "every linear layer": lora("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    "modules to save": lora("q_proj", modules_to_save=["lm_head", "input_layernorm"]),
    "embeddings": lora("embed_tokens", "lm_head", "q_proj"),
    "trained biases": lora("q_proj", bias="lora_only"),
    "all biases": lora("q_proj", bias="all"),
    "bias of B": lora("q_proj", "o_proj", lora_bias=True),
}
GPT2S = {
    "LoRA": lora("c_attn", "c_proj", "c_fc"),
    "DoRA": lora("c_attn", "c_proj", use_dora=True),
    "with the head, which changes fan_in_fan_out back": lora("c_attn", "c_proj", "lm_head"),
    "square alone": lora("attn.c_proj"),
    "embeddings": lora("wte", "wpe", "c_attn"),
}
CASES = [
    *(("llama", name, config) for name, config in LLAMAS.items()),
    *(("gpt2", name, config) for name, config in GPT2S.items()),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("models")
    configs = {"llama": small_llama(attention_bias=True), "gpt2": tiny_gpt2(tie_word_embeddings=False)}
    return {name: (folder / name, save_model(folder / name, config)) for name, config in configs.items()}


@pytest.mark.parametrize(("family", "name", "config"), CASES, ids=[f"{family}: {name}" for family, name, _ in CASES])
def test_as_peft_merges_it(models: dict[str, Any], tmp_path: Path, family: str, name: str, config: Any) -> None:
    folder, model = models[family]
    (tmp_path / "model").symlink_to(folder)
    wanted = save_adapter(model, config, tmp_path / "lora")
    assert largest_difference(tensors(folder), wanted) > 0.01  # it does something
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    done = run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS
    done = run_amatax("verify", "out", cwd=tmp_path)
    assert done.code == 0, done.err


def test_between_two_adapters(models: dict[str, Any], tmp_path: Path) -> None:
    """Both models have an adapter: the merge is the average of PEFT's two merged models."""
    folder, model = models["llama"]
    (tmp_path / "model").symlink_to(folder)
    sft = save_adapter(model, lora("q_proj", "gate_proj"), tmp_path / "one", seed=1)
    rlhf = save_adapter(model, lora("q_proj", "o_proj", use_dora=True, r=8), tmp_path / "two", seed=2)
    write(tmp_path, {"sft": adapted("./one"), "rlhf": adapted("./two")}, ratios=0.3)
    done = run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    wanted = {name: 0.7 * sft[name] + 0.3 * rlhf[name] for name in sft}
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare", "slerp"])
def test_other_methods_see_the_adapted_tensors(models: dict[str, Any], tmp_path: Path, method: str) -> None:
    """As of PEFT's merged models, written out in full."""
    folder, model = models["llama"]
    (tmp_path / "model").symlink_to(folder)
    for seed, name in enumerate(("one", "two"), 1):
        save_adapter(model, lora("q_proj", "down_proj", "o_proj"), tmp_path / name, seed=seed)
    write(tmp_path, {"base": "./model", "sft": adapted("./one"), "rlhf": adapted("./two")}, method=method, ratios=0.4)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    write(tmp_path, {"base": "./model", "sft": "./one-merged", "rlhf": "./two-merged"}, method=method, ratios=0.4)
    assert (done := run_amatax("merge", "recipe.yaml", "full", cwd=tmp_path)).code == 0, done.err
    found, wanted = tensors(tmp_path / "out"), tensors(tmp_path / "full")
    off = sum(int(((found[n] - wanted[n]).abs() > ULPS * (1 + wanted[n].abs())).sum()) for n in wanted)
    assert off <= 1e-4 * sum(t.numel() for t in wanted.values())  # a threshold may fall between two roundings


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    """The change is added in float32 to the bfloat16 weights: each written number is the nearest bfloat16."""
    model = save_model(tmp_path / "model", small_llama(), dtype="bfloat16")
    save_adapter(model, lora("q_proj", "down_proj"), tmp_path / "lora", spread=0.05)
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    base, factors, out = (tensors(tmp_path / name) for name in ("model", "lora", "out"))
    for name in base:
        exact = base[name].double()
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in factors:
            exact = exact + 1.5 * factors[f"{key}.lora_B.weight"].double() @ factors[f"{key}.lora_A.weight"].double()
        assert out[name].dtype == torch.bfloat16
        wrong = out[name] != exact.to(torch.bfloat16)
        assert int(wrong.sum()) <= 1e-3 * wrong.numel()  # where float32 decides a tie otherwise than float64


def test_a_tied_head_changes_with_its_embeddings(tmp_path: Path) -> None:
    """As in PEFT's merge, where both are one parameter; the plan says so."""
    model = save_model(tmp_path / "model", small_llama(tie_word_embeddings=True))
    wanted = save_adapter(model, lora("q_proj", "embed_tokens"), tmp_path / "lora")
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    assert "is also the head (tied)" in done.out
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS
    wanted = save_adapter(model, lora("q_proj", "lm_head"), tmp_path / "lora2")
    write(tmp_path, {"sft": "./model", "rlhf": adapted("./lora2")}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out2", cwd=tmp_path)).code == 0, done.err
    assert largest_difference(tensors(tmp_path / "out2"), wanted) < ULPS


def test_linear_layers_whose_config_says_inputs_first(tmp_path: Path) -> None:
    """PEFT warns, and reads a square weight as the linear layer that it is."""
    model = save_model(tmp_path / "model", small_llama())
    wanted = save_adapter(model, lora("q_proj", "o_proj"), tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fan_in_fan_out": True}))
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS


def test_names_on_disk_without_their_prefix(models: dict[str, Any], tmp_path: Path) -> None:
    """GPT-2's own checkpoint has `h.0.attn`, its adapters have `transformer.h.0.attn`."""
    from safetensors.torch import save_file

    folder, model = models["gpt2"]
    (tmp_path / "model").mkdir()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors(folder).items()}
    save_file(bare, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    (tmp_path / "model" / "config.json").write_bytes((folder / "config.json").read_bytes())
    wanted = save_adapter(model, lora("c_attn", "c_fc"), tmp_path / "lora")
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    wanted = {name.removeprefix("transformer."): tensor for name, tensor in wanted.items()}
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions(tmp_path: Path, dora: bool) -> None:
    """Those of Whisper's ears, three wide: b @ a over all that follows the outputs."""
    from transformers import WhisperConfig

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 64, "num_mel_bins": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(architectures=["WhisperForConditionalGeneration"], **sizes, **heads, **tokens)
    model = save_model(tmp_path / "model", config)
    wanted = save_adapter(model, lora("conv1", "conv2", "q_proj", use_dora=dora), tmp_path / "lora")
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    assert largest_difference(tensors(tmp_path / "out"), wanted) < ULPS


def test_experts_one_by_one(tmp_path: Path) -> None:
    """The experts of a checkpoint that has them one by one take adapters saved for them one by one (transformers 4)."""
    from safetensors.torch import save_file
    from transformers import MixtralConfig

    config = MixtralConfig(
        architectures=["MixtralForCausalLM"],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=3,
    )
    save_model(tmp_path / "model", config)
    base = tensors(tmp_path / "model")
    torch.manual_seed(3)
    factors = {}
    for name, weight in base.items():
        if ".experts." in name:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{key}.lora_A.weight"] = torch.randn(4, weight.shape[1])
            factors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 4)
    (tmp_path / "lora").mkdir()
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["w1", "w2", "w3"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(said))
    write(tmp_path, {"sft": "./model", "rlhf": adapted()}, ratios=1)
    assert (done := run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)).code == 0, done.err
    found = tensors(tmp_path / "out")
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in factors:
            weight = weight + factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
        torch.testing.assert_close(found[name], weight, rtol=ULPS, atol=1e-5)
