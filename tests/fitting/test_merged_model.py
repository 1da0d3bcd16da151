"""What is optimised is what is written: likelihoods equal those of the merged folder, gradients those of finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from amatax import api
from amatax.errors import CheckpointError
from amatax.fitting import merged_weights
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
        group = getattr(merged.model.get_submodule(path).parametrizations, leaf)[0].group
        ratio = float(merged.offsets[group]) + (merged.slopes[group].float() * unknowns).sum()
        weights[key] = before.detach() + ratio * (theirs[key].detach() - before.detach())
    named = {
        name.replace("parametrizations.", "").removesuffix(".original") for name in ours if name.endswith(".original")
    }
    assert named == set(weights)
    total = torch.zeros(())
    for sample in data:
        output = torch.func.functional_call(sft, weights, (torch.tensor([sample.ids]),))
        logs = output.logits[0].log_softmax(-1)
        total = total - sum(logs[i - 1, sample.ids[i]] for i in range(sample.start, len(sample.ids)))
    (total / found.tokens.sum()).backward()
    assert torch.allclose(found.gradient, unknowns.grad.double(), rtol=1e-4, atol=1e-7), (found.gradient, unknowns.grad)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("wishes", [{}, {"groups": True, "free_head": True}], ids=["blocks", "groups and head"])
@pytest.mark.parametrize("divergence", [False, True], ids=["NLL", "KL"])
def test_gradients_are_finite_differences(tmp_path: Path, name: str, wishes: dict[str, bool], divergence: bool) -> None:
    recipe = siblings_of(tmp_path, name)
    _, variables, merged = load(recipe, torch.float64, **wishes)
    data = samples(vocabulary(recipe))
    values = [0.9, 0.2, 0.6, 0.7, 0.35][: len(variables.names)]
    slope = measure(at(merged, values), data, gradient=True, divergence=divergence).gradient
    assert slope is not None
    for i in range(len(values)):

        def beside(steps: int, i: int = i) -> float:
            moved = [v + steps * 0.02 * (i == j) for j, v in enumerate(values)]
            return measure(at(merged, moved), data, divergence=divergence).mean

        # five points: transformers runs its norms in float32, whose noise a smaller step would show
        want = (8 * (beside(1) - beside(-1)) - (beside(2) - beside(-2))) / (12 * 0.02)
        assert float(slope[i]) == pytest.approx(want, rel=3e-5, abs=1e-6), variables.names[i]


def test_weights_of_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large weight is widened piece by piece and multiplied some rows at a time; what comes out is the same."""
    recipe = siblings_of(tmp_path, "qwen2, tied, biases")
    _, _, merged = load(recipe, torch.float64)
    data = samples(vocabulary(recipe))
    one = measure(at(merged, [0.9, 0.2]), data, gradient=True)
    monkeypatch.setattr(merged_weights, "PIECE", {"cpu": 100})
    monkeypatch.setattr(merged_weights, "ROWS", 320)
    again = measure(merged, data, gradient=True)
    assert torch.allclose(again.sums, one.sums, rtol=1e-9)
    assert torch.allclose(again.gradient, one.gradient, rtol=1e-9)


def test_half_precision_where_a_cpu_only_imitates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio's gradient is then multiplied in float32: nearer to the exact one. Where the CPU does it, nothing is widened."""
    recipe = siblings_of(tmp_path, "llama", "bfloat16")
    _, _, exact = load(recipe, torch.float64)
    _, _, merged = load(recipe, torch.bfloat16)
    data = samples(vocabulary(recipe))
    want = measure(at(exact, [0.9, 0.2]), data, gradient=True).gradient
    found = {}
    for unit in (None, "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True}, raising=False)
        found[unit] = measure(at(merged, [0.9, 0.2]), data, gradient=True)
    assert torch.equal(found[None].sums, found["avx512_bf16"].sums)
    assert not torch.equal(found[None].gradient, found["avx512_bf16"].gradient)
    for one in found.values():
        assert torch.allclose(one.gradient, want, rtol=0.1, atol=2e-3)
    factor = torch.ones(2, 2, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert merged_weights._widen_if_slow(factor).dtype == torch.float32
    assert merged_weights._widen_if_slow(factor.double()).dtype == torch.float64


@pytest.mark.parametrize("divergence", [False, True], ids=["NLL", "KL"])
def test_batches_and_order_change_nothing_but_rounding(tmp_path: Path, divergence: bool) -> None:
    recipe = siblings_of(tmp_path, "llama")
    _, _, merged = load(recipe, torch.float64)
    data = samples(vocabulary(recipe))
    one = measure(at(merged, [0.9, 0.2]), data, gradient=True, divergence=divergence)
    for others, tokens in ((data, 1), (data, 30), (data[::-1], 4096)):
        found = measure(merged, others, gradient=True, batch_tokens=tokens, divergence=divergence)
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


@pytest.mark.parametrize("name", CONFIGS)
def test_no_merged_weight_is_kept_for_backward(tmp_path: Path, name: str) -> None:
    """Autograd keeps what it keeps of a plain model, which is no weight: a merged one would cost a third model."""
    recipe = siblings_of(tmp_path, name)
    _, _, merged = load(recipe, torch.float32)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sft", dtype=torch.float32).eval()
    ids = torch.tensor([samples(vocabulary(recipe))[1].ids])

    def kept(model: Any) -> int:
        """Bytes of the storages that autograd keeps, the stored models' own left out."""
        stored = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({ptr(t): size(t)}) or t, lambda t: t):
            loss = model(ids).logits.sum()
        del loss
        return sum(n for at, n in sizes.items() if at not in stored)

    def ptr(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def size(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().nbytes()

    most = kept(plain)
    found: dict[int, int] = {}
    pack = merged._pack
    stored = {ptr(t) for t in [*merged.model.parameters(), *merged.model.buffers()]}

    def packed(tensor: torch.Tensor) -> Any:
        result = pack(tensor)
        if isinstance(result, torch.Tensor) and ptr(result) not in stored:
            found[ptr(result)] = size(result)
        return result

    vars(merged)["_pack"] = packed
    with at(merged, [0.9, 0.2]).merging():
        loss = merged.model(ids).logits.sum()
        assert sum(found.values()) <= 1.05 * most
        loss.backward()
    assert merged.variables.grad is not None
    assert merged.variables.grad.abs().min() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_along_a_held_mean_the_gradient_is_the_whole_one_but_for_a_multiple_of_the_shares(
    tmp_path: Path, name: str
) -> None:
    recipe = siblings_of(tmp_path, name)
    compute = torch.float64 if name in SMOOTH else torch.float32  # transformers has no product of experts in float64
    _, variables, merged = load(recipe, compute, groups=True, free_head=True)
    data = samples(vocabulary(recipe))
    values = [0.9, 0.2, 0.6, 0.7, 0.35]
    whole = measure(at(merged, values), data, gradient=True).gradient
    shares = torch.tensor([float(s) for s in variables.shares], dtype=torch.float64)
    merged.hold_mean(shares.tolist())
    held = measure(at(merged, values), data, gradient=True).gradient
    apart = whole - held
    assert torch.allclose(apart, (apart @ shares) / (shares @ shares) * shares, rtol=1e-4, atol=1e-7)
    assert held.abs().max() > 0


def test_one_block_at_a_held_mean_has_nothing_to_differentiate(tmp_path: Path) -> None:
    recipe = siblings_of(tmp_path, "llama")
    plan = make_plan(load_recipe(recipe))
    variables = choose_variables(plan.ratios, plan.model, 1, groups=False, free_head=False, weigh_by_layers=False)
    merged = load_merged_model(plan, *tensor_groups(plan, variables), compute=torch.float32)
    merged.hold_mean([1.0])
    found = measure(at(merged, [0.4]), samples(), gradient=True).gradient
    assert found.tolist() == [0.0]


def test_weights_that_are_not_contiguous_are_merged_all_the_same(tmp_path: Path) -> None:
    """Whole experts are transposed as they are loaded, and so may a conversion of transformers leave any weight."""
    recipe = siblings_of(tmp_path, "llama")
    _, _, merged = load(recipe, torch.float32)
    want = measure(at(merged, [0.9, 0.2]), samples(), gradient=True)

    from_pretrained = transformers.LlamaForCausalLM.from_pretrained

    def transposed(*args: Any, **kwargs: Any) -> Any:
        made = from_pretrained(*args, **kwargs)
        model = made[0] if isinstance(made, tuple) else made
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "from_pretrained", transposed)
        _, _, merged = load(recipe, torch.float32)
    found = measure(at(merged, [0.9, 0.2]), samples(), gradient=True)
    assert torch.equal(found.sums, want.sums)
    assert torch.allclose(found.gradient, want.gradient)


def test_ratios_that_transformers_joins_are_refused(tmp_path: Path) -> None:
    recipe = siblings_of(tmp_path, "mixtral, experts fused at load")
    apart = {**WORDS, "overrides": [{"match": "*.experts.1.*", "ratio": 0.9}]}
    with pytest.raises(CheckpointError, match=r"joins tensors of different ratios into 'model.layers.0.mlp.experts"):
        load({**recipe, "merge": {"ratios": apart}}, torch.float32)
