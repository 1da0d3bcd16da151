"""What holds of the delta methods for any numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.whole import merge

number = st.floats(-64, 64, allow_nan=False, width=16)
triples = st.lists(st.tuples(number, number, number), min_size=1, max_size=40)
ratios = st.floats(0, 1)
shares = st.floats(0, 1)
ALL = ["task_arithmetic", "ties", "breadcrumbs", "dare", "dare_ties", "della", "slerp"]
OPTIONS = {"della": {"density": 0.5, "epsilon": 0.25}}
Models = list[torch.Tensor]  # base, sft, rlhf


def models(found: list[tuple[float, float, float]]) -> Models:
    return [torch.tensor(list(column), dtype=torch.float64) for column in zip(*found, strict=True)]


def near(got: torch.Tensor, want: torch.Tensor, size: float = 64) -> None:
    assert torch.allclose(got, want, rtol=1e-12, atol=size * 1e-13)


@given(found=triples, ratio=ratios)
def test_ties_of_everything_with_equal_signs_is_the_mean_of_the_changes(found, ratio) -> None:
    base, sft, rlhf = models(found)
    sft, rlhf = base + (sft - base).abs(), base + (rlhf - base).abs()
    both = (sft != base) & (rlhf != base)  # a change of zero agrees with nothing
    want = base + (1 - ratio) * (sft - base) + ratio * (rlhf - base)
    near(merge("ties", base, sft, rlhf, ratio, density=1.0)[both], want[both])


@pytest.mark.parametrize("method", ALL)
@given(found=triples, end=st.sampled_from([0.0, 1.0]))
@settings(max_examples=40)
def test_at_the_ends_with_everything_kept_it_is_one_of_the_models(method, found, end) -> None:
    base, sft, rlhf = models(found)
    kept = {"breadcrumbs": {"density": 1.0, "gamma": 0.0}, "della": {"density": 1.0, "epsilon": 0.0}}
    options = kept.get(method, {} if method in ("task_arithmetic", "slerp") else {"density": 1.0})
    near(merge(method, base, sft, rlhf, end, **options), rlhf if end else sft)


@pytest.mark.parametrize("method", [*ALL, "model_stock"])
@given(found=triples, ratio=ratios, power=st.integers(-12, 12))
@settings(max_examples=40)
def test_a_power_of_two_passes_through(method, found, ratio, power) -> None:
    """Bit for bit, in any method: nothing hangs on the scale of the weights."""
    three, factor = models(found), 2.0**power
    want = merge(method, *three, ratio, **OPTIONS.get(method, {})) * factor
    assert torch.equal(merge(method, *(t * factor for t in three), ratio, **OPTIONS.get(method, {})), want)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs"])
@given(found=triples, ratio=ratios, share=shares, random=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_elements_does_not_matter_where_sizes_differ(method, found, ratio, share, random) -> None:
    base, sft, rlhf = models(found)
    steps = torch.arange(1, len(base) + 1, dtype=torch.float64)  # no two changes of one size
    sft, rlhf = base + steps * torch.where(sft > base, 1, -1), base + steps.flip(0) * torch.where(rlhf > base, 1, -1)
    options = {} if method == "task_arithmetic" else {"density": share}
    order = torch.tensor(random.sample(range(len(base)), len(base)))
    want = merge(method, base, sft, rlhf, ratio, **options)[order]
    assert torch.equal(merge(method, base[order], sft[order], rlhf[order], ratio, **options), want)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "slerp", "model_stock"])
@given(found=triples, ratio=st.integers(0, 64).map(lambda n: n / 64))
@settings(max_examples=60)
def test_the_other_way_round_with_the_other_share(method, found, ratio) -> None:
    base, sft, rlhf = models(found)
    near(merge(method, base, sft, rlhf, ratio), merge(method, base, rlhf, sft, 1 - ratio))


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare", "dare_ties", "della", "model_stock"])
@given(found=triples, ratio=ratios)
@settings(max_examples=40)
def test_what_did_not_change_stays(method, found, ratio) -> None:
    base, _, _ = models(found)
    assert torch.equal(merge(method, base, base, base, ratio, **OPTIONS.get(method, {})), base)
