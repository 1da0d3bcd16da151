"""fit-ratios with adapters: the same numbers as with the adapter merged into a full RLHF model, from factors alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from amatax import api
from amatax.fitting.adapted import Factors
from amatax.fitting.likelihood import measure
from amatax.fitting.merged_model import MergedModel
from tests.adapters import lora, save_adapter, save_model, tiny_gpt2
from tests.conftest import run_amatax, tiny_llama
from tests.fitting.conftest import FAMILY
from tests.fitting.family import nll_of_fitted_part
from tests.fitting.test_merged_model import CONFIGS, WORDS, at, load, samples

ATTENTION = ("q_proj", "v_proj", "o_proj")
CASES: dict[str, tuple[Callable[[], Any], Any, bool]] = {
    "LoRA": (lambda: tiny_llama(), lora(*ATTENTION, "down_proj"), True),
    "DoRA": (lambda: tiny_llama(), lora(*ATTENTION, "lm_head", use_dora=True), True),
    "embeddings, norms and biases": (
        lambda: tiny_llama(attention_bias=True),
        lora("q_proj", "embed_tokens", bias="lora_only", modules_to_save=["norm", "input_layernorm"]),
        True,
    ),
    "tied embeddings": (lambda: tiny_llama(tie_word_embeddings=True), lora("q_proj", "embed_tokens"), True),
    "Conv1D": (lambda: tiny_gpt2(vocab_size=64), lora("c_attn", "c_proj", "c_fc", use_dora=True), True),
    "experts that transformers joins": (CONFIGS["mixtral, experts fused at load"], lora("q_proj"), True),
}


def recipes(folder: Path, adapter: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """(with the adapter, with what PEFT merged)."""
    rlhf = {"model": str(folder / "model"), "adapter": str(folder / "lora")}
    models = {"sft": str(folder / "model"), "rlhf": rlhf}
    merge = {"merge": {"ratios": WORDS}}
    return {"models": models, **merge}, {"models": {**models, "rlhf": str(folder / "lora-merged")}, **merge}


def kept(merged: MergedModel) -> dict[str, Any]:
    """What stands for RLHF, by parameter."""
    found = {}
    for name, module in merged.model.named_modules():
        for leaf, merging in getattr(module, "parametrizations", {}).items():
            found[f"{name}.{leaf}"] = merging[0].other()
    return found


@pytest.mark.parametrize("name", CASES)
def test_as_with_the_merged_model(tmp_path: Path, name: str) -> None:
    """Likelihood and gradient, and nothing of a matrix' size is kept for RLHF."""
    config, adapter, _ = CASES[name]
    described = config()
    if not described.architectures:
        described.architectures = ["MixtralForCausalLM"]
    model = save_model(tmp_path / "model", described)
    save_adapter(model, adapter, tmp_path / "lora")
    ours, full = recipes(tmp_path)
    data = samples(int(described.vocab_size))
    measured = []
    for recipe in (ours, full):
        _, _, merged = load(recipe, torch.float32)
        measured.append([measure(at(merged, v), data, gradient=True) for v in ([0.9, 0.2], [0.0, 1.0], [1.0, 1.0])])
        measured[-1] += [measure(merged, data, merged.everywhere(end)) for end in (0.0, 1.0)]
        if recipe is ours:
            assert all(isinstance(k, Factors) for k in kept(merged).values() if _rank(k) == 2)
    for found, wanted in zip(*measured, strict=True):
        assert found.sums.tolist() == pytest.approx(wanted.sums.tolist(), rel=5e-6)
    for found, wanted in zip(*(part[:3] for part in measured), strict=True):
        assert found.slope() == pytest.approx(wanted.slope(), rel=2e-3, abs=1e-6)


def _rank(value: Any) -> int:
    return 2 if isinstance(value, Factors) else value.dim()


def test_two_adapters_are_two_models(tmp_path: Path) -> None:
    """Where SFT has an adapter too, both are loaded whole, in float32."""
    model = save_model(tmp_path / "model", tiny_llama(), dtype="bfloat16")
    for seed, name in enumerate(("one", "lora"), 1):
        save_adapter(model, lora(*ATTENTION), tmp_path / name, seed=seed)
    ours, _ = recipes(tmp_path)
    ours["models"]["sft"] = {"model": str(tmp_path / "model"), "adapter": str(tmp_path / "one")}
    _, variables, merged = load(ours, torch.float32)
    data = samples(160)
    found = measure(at(merged, [0.9, 0.2]), data)
    ratios = variables.ratios([0.9, 0.2]).model_dump()
    api.merge({**ours, "merge": {"ratios": ratios}, "output": {"dtype": "float32"}}, tmp_path / "out")
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for sample, total in zip(data, found.sums.tolist(), strict=True):
        with torch.no_grad():
            logs = written(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        want = -sum(float(logs[i - 1, sample.ids[i]]) for i in range(sample.start, len(sample.ids)))
        assert total == pytest.approx(want, rel=2e-6)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's SFT model in float32, with an adapter that goes the way of its RLHF model, and that merged in full."""
    folder = tmp_path_factory.mktemp("family")
    sft, rlhf = (
        transformers.AutoModelForCausalLM.from_pretrained(FAMILY / r, dtype=torch.float32) for r in ("sft", "rlhf")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(FAMILY / "sft")
    import peft

    sft.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    wrapped = peft.get_peft_model(sft, lora("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", r=16, lora_alpha=16))
    theirs = rlhf.state_dict()
    with torch.no_grad():
        for name, module in wrapped.named_modules():
            if hasattr(module, "lora_A") and len(module.lora_A):
                disk = f"{name.removeprefix('base_model.model.')}.weight"
                u, s, v = torch.linalg.svd(theirs[disk] - module.base_layer.weight, full_matrices=False)
                module.lora_B["default"].weight.copy_(u[:, :16] * s[:16])
                module.lora_A["default"].weight.copy_(v[:16])
    wrapped.save_pretrained(folder / "lora")
    wrapped.merge_and_unload().save_pretrained(folder / "lora-merged")
    tokenizer.save_pretrained(folder / "lora-merged")
    rlhf_with = {"model": "./model", "adapter": "./lora"}
    for name, said in (("ours", rlhf_with), ("full", "./lora-merged")):
        recipe = {"models": {"sft": "./model", "rlhf": said}, "fit": {"alpha": 0.4, "blocks": 3}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def test_the_fitted_ratios_are_those_of_the_merged_model(family: Path, distilled: Path) -> None:
    """And the NLL in the report is that of the folder that `amatax merge` writes."""
    found = {}
    for name in ("ours", "full"):
        done = run_amatax(
            "fit-ratios", f"{name}.yaml", "-o", f"{name}-fitted.yaml", "--data", distilled, "--json", cwd=family
        )
        assert done.code == 0, done.err
        (found[name],) = done.json["fits"]
    assert found["ours"]["values"] == pytest.approx(found["full"]["values"], abs=2e-4)
    assert found["ours"]["fitted"]["fitted"] == pytest.approx(found["full"]["fitted"]["fitted"], rel=1e-6)
    fitted = yaml.safe_load((family / "ours-fitted.yaml").read_text())
    assert fitted["models"]["rlhf"] == {"model": "./model", "adapter": "./lora"}

    done = run_amatax("merge", "ours-fitted.yaml", "out", cwd=family)
    assert done.code == 0, done.err
    assert nll_of_fitted_part(family / "out", distilled) == pytest.approx(found["ours"]["fitted"]["fitted"], rel=1e-5)


def test_a_fitted_recipe_elsewhere_finds_its_adapter(family: Path, distilled: Path) -> None:
    (family / "sub").mkdir(exist_ok=True)
    command = ["fit-ratios", "ours.yaml", "-o", "sub/f.yaml", "--data", distilled, "--blocks", "2", "--holdout", "0"]
    assert (done := run_amatax(*command, cwd=family)).code == 0, done.err
    fitted = yaml.safe_load((family / "sub" / "f.yaml").read_text())
    assert fitted["models"]["rlhf"] == {"model": "../model", "adapter": "../lora"}


def test_the_adapted_model_answers(family: Path, tmp_path: Path) -> None:
    """distill samples from the model with its adapter: what its merged twin says."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "What is 12 + 35?"}\n{"prompt": "Hello"}\n')
    for name in ("ours", "full"):
        done = run_amatax(
            "distill",
            family / f"{name}.yaml",
            "--prompts",
            tmp_path / "p.jsonl",
            "-o",
            f"{name}.jsonl",
            "--n",
            "2",
            cwd=tmp_path,
        )
        assert done.code == 0, done.err
    assert (tmp_path / "ours.jsonl").read_text() == (tmp_path / "full.jsonl").read_text()
