"""What is optimised is what is written: likelihoods equal those of the merged folder, gradients those of finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from amatax import api
from amatax.errors import CheckpointError
from amatax.fitting.likelihood import measure
from amatax.fitting.merged_model import MergedModel, load_merged_model
from amatax.fitting.samples import Sample
from amatax.fitting.variables import Variables, choose_variables, tensor_groups
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.loading import load_recipe
from tests.conftest import save_siblings, tiny_llama

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tiny_llama(),
    "qwen2, tied, biases": lambda: transformers.Qwen2Config(
        **SMALL, num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True
    ),
    "gpt2, Conv1D": lambda: transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=64, n_positions=64),
    "mixtral, experts fused at load": lambda: transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=48, num_local_experts=4
    ),
}
WORDS = {"blocks": [0.5, 0.5], "head": "mean", "embeddings": 0.25, "norms": "block"}


def samples(vocabulary: int = 64) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 17, 9, 12, 17, 6]
    return [
        Sample(torch.randint(1, vocabulary, (n,), generator=generator).tolist(), 1 + i % 3, f"prompt {i}")
        for i, n in enumerate(lengths)
    ]


def siblings_of(folder: Path, name: str, dtype: str = "float32") -> dict[str, Any]:
    save_siblings(folder, CONFIGS[name](), dtype=dtype, spread=0.1)
    return {"models": {"sft": str(folder / "sft"), "rlhf": str(folder / "rlhf")}, "merge": {"ratios": WORDS}}


def load(recipe: dict[str, Any], compute: torch.dtype, **wishes: Any) -> tuple[Plan, Variables, MergedModel]:
    plan = make_plan(load_recipe(recipe))
    wishes = {"groups": False, "free_head": False, "weigh_by_layers": False, **wishes}
    variables = choose_variables(plan.ratios, plan.model, 2, **wishes)
    groups, rows = tensor_groups(plan, variables)
    return plan, variables, load_merged_model(plan, groups, rows, compute=compute)


def at(merged: MergedModel, values: list[float]) -> MergedModel:
    with torch.no_grad():
        merged.variables.copy_(torch.tensor(values, dtype=torch.float64))
    return merged


def vocabulary(recipe: dict[str, Any]) -> int:
    config = transformers.AutoConfig.from_pretrained(recipe["models"]["sft"])
    return int(config.vocab_size)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_likelihood_is_that_of_the_merged_folder(tmp_path: Path, name: str, dtype: str) -> None:
    recipe = siblings_of(tmp_path, name, dtype)
    _, variables, merged = load(recipe, torch.float32)
    data = samples(vocabulary(recipe))
    found = measure(at(merged, [0.9, 0.2]), data)

    ratios = variables.ratios([0.9, 0.2]).model_dump()
    api.merge({**recipe, "merge": {"ratios": ratios}, "output": {"dtype": "float32"}}, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for sample, total in zip(data, found.sums.tolist(), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sample.ids])).logits[0]
        logs = logits.log_softmax(-1)
        want = -sum(float(logs[i - 1, sample.ids[i]]) for i in range(sample.start, len(sample.ids)))
        assert total == pytest.approx(want, rel=2e-6)
    for end, role in ((0.0, "sft"), (1.0, "rlhf")):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / role, dtype=torch.float32)
        with torch.no_grad():
            logs = model(torch.tensor([data[1].ids])).logits[0].log_softmax(-1)
        want = -sum(float(logs[i - 1, data[1].ids[i]]) for i in range(data[1].start, len(data[1].ids)))
        got = float(measure(merged, data, merged.everywhere(end)).sums[1])
        assert got == pytest.approx(want, rel=2e-6)


SMOOTH = [name for name in CONFIGS if "experts" not in name]  # a router's choice of experts jumps


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_straightforward_way(tmp_path: Path, name: str) -> None:
    """Against torch.func.functional_call on weights merged with autograd watching."""
    recipe = siblings_of(tmp_path, name)
    _, _, merged = load(recipe, torch.float32)
    data = samples(vocabulary(recipe))
    values = [0.9, 0.2]
    found = measure(at(merged, values), data, gradient=True)

    sft, rlhf = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / role, dtype=torch.float32)
        for role in ("sft", "rlhf")
    )
    unknowns = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    ours = dict(merged.model.named_parameters())
    theirs = dict(rlhf.named_parameters())
    weights = {}
    for key, before in sft.named_parameters():
        path, _, leaf = key.rpartition(".")
        group = getattr(merged.model.get_submodule(path).parametrizations, leaf)[0]._group
        ratio = float(merged.offsets[group]) + (merged.slopes[group].float() * unknowns).sum()
        weights[key] = before.detach() + ratio * (theirs[key].detach() - before.detach())
    assert len(ours) == len(weights)
    total = torch.zeros(())
    for sample in data:
        output = torch.func.functional_call(sft, weights, (torch.tensor([sample.ids]),))
        logs = output.logits[0].log_softmax(-1)
        total = total - sum(logs[i - 1, sample.ids[i]] for i in range(sample.start, len(sample.ids)))
    (total / found.tokens.sum()).backward()
    assert torch.allclose(found.gradient, unknowns.grad.double(), rtol=1e-4, atol=1e-7), (found.gradient, unknowns.grad)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("wishes", [{}, {"groups": True, "free_head": True}], ids=["blocks", "groups and head"])
def test_gradients_are_finite_differences(tmp_path: Path, name: str, wishes: dict[str, bool]) -> None:
    recipe = siblings_of(tmp_path, name)
    _, variables, merged = load(recipe, torch.float64, **wishes)
    data = samples(vocabulary(recipe))
    values = [0.9, 0.2, 0.6, 0.7, 0.35][: len(variables.names)]
    slope = measure(at(merged, values), data, gradient=True).gradient
    assert slope is not None
    for i in range(len(values)):

        def beside(steps: int, i: int = i) -> float:
            moved = [v + steps * 0.02 * (i == j) for j, v in enumerate(values)]
            return measure(at(merged, moved), data).mean

        # five points: transformers runs its norms in float32, whose noise a smaller step would show
        want = (8 * (beside(1) - beside(-1)) - (beside(2) - beside(-2))) / (12 * 0.02)
        assert float(slope[i]) == pytest.approx(want, rel=3e-5, abs=1e-6), variables.names[i]


def test_batches_and_order_change_nothing_but_rounding(tmp_path: Path) -> None:
    recipe = siblings_of(tmp_path, "llama")
    _, _, merged = load(recipe, torch.float64)
    data = samples(vocabulary(recipe))
    one = measure(at(merged, [0.9, 0.2]), data, gradient=True)
    for others, tokens in ((data, 1), (data, 30), (data[::-1], 4096)):
        found = measure(merged, others, gradient=True, batch_tokens=tokens)
        assert found.mean == pytest.approx(one.mean, rel=1e-9)
        assert torch.allclose(found.gradient, one.gradient, rtol=1e-6)


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    recipe = siblings_of(tmp_path, "llama")
    _, _, merged = load(recipe, torch.float64)
    data = samples(vocabulary(recipe))
    one = measure(at(merged, [0.9, 0.2]), data, gradient=True)
    merged.checkpoint_activations()
    again = measure(merged, data, gradient=True)
    assert torch.equal(one.sums, again.sums)
    assert torch.allclose(one.gradient, again.gradient, rtol=1e-9)


def test_no_merged_weight_is_kept_for_backward(tmp_path: Path) -> None:
    """Of the tensors that autograd keeps, none has the storage of a merged weight: it would cost a third model."""
    recipe = siblings_of(tmp_path, "llama")
    _, _, merged = load(recipe, torch.float32)
    sizes = []
    merge = merged.merge

    def counted(*args: Any) -> torch.Tensor:
        result = merge(*args)
        sizes.append((result.untyped_storage().data_ptr(), result.numel()))
        return result

    merged.merge = counted
    kept = []
    pack = merged._pack
    merged._pack = lambda t: kept.append(pack(t)) or kept[-1]
    data = samples(vocabulary(recipe))
    at(merged, [0.9, 0.2])
    with merged.merging():
        ids = torch.tensor([data[1].ids])
        merged.model(ids).logits.sum().backward()
    assert len(sizes) >= 4 * 7
    again = [k for k in kept if isinstance(k, tuple)]
    assert len(again) >= 4 * 7, "each Linear's weight is merged again in backward"
    largest = max(n for _, n in sizes)
    whole = [k for k in kept if isinstance(k, torch.Tensor) and k.numel() >= largest and k.dim() == 2]
    assert not whole, [k.shape for k in whole]


def test_ratios_that_transformers_joins_are_refused(tmp_path: Path) -> None:
    recipe = siblings_of(tmp_path, "mixtral, experts fused at load")
    apart = {**WORDS, "overrides": [{"match": "*.experts.1.*", "ratio": 0.9}]}
    with pytest.raises(CheckpointError, match=r"joins tensors of different ratios into 'model.layers.0.mlp.experts"):
        load({**recipe, "merge": {"ratios": apart}}, torch.float32)
