"""Every method by hand, and against another way to the same numbers: sorted, in float64, whole tensors at once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from amatax.methods._combining import _weighed, agreed
from tests.methods.whole import merge

DELTA = ["task_arithmetic", "ties", "dare", "dare_ties", "della", "breadcrumbs"]
BASE, SFT, RLHF = ([1.0, 1.0, 1.0, 1.0, -2.0], [3.0, 0.5, 1.0, 1.25, -2.5], [2.0, 1.25, 5.0, 0.0, -2.25])
# changes:          sft 2, -.5, 0, .25, -.5      rlhf 1, .25, 4, -1, -.25


def by_hand(method: str, ratio: float, **options: Any) -> list[float]:
    return merge(method, *(torch.tensor(x) for x in (BASE, SFT, RLHF)), ratio, **options).tolist()


def test_task_arithmetic() -> None:
    assert by_hand("task_arithmetic", 0.25) == [2.75, 0.6875, 2.0, 0.9375, -2.4375]
    assert by_hand("task_arithmetic", 0.25, scale=2.0) == [4.5, 0.375, 3.0, 0.875, -2.875]
    assert by_hand("task_arithmetic", 1.5) == [
        1.5,
        1.625,
        7.0,
        -0.625,
        -2.125,
    ]  # 1.5 of RLHF's change less half of SFT's


def test_ties() -> None:
    """density .6 keeps three: of SFT 2, -.5 and -.5, of RLHF 4, 1 and -1."""
    assert by_hand("ties", 0.25, density=0.6) == [1 + (1.5 + 0.25) / 1, 0.5, 5.0, 0.0, -2.5]
    assert by_hand("ties", 0.25, density=0.4) == [2.75, 0.5, 5.0, 1.0, -2.0]  # of equal ones the first
    assert by_hand("ties", 0.5, density=0.6, scale=0.5) == [1 + 1.5 / 2, 0.75, 3.0, 0.5, -2.25]


def test_the_elected_sign() -> None:
    """Of two opposite changes the weightier one stands, whole; of a weighted sum of zero the positive one."""
    base = torch.zeros(3)
    sft, rlhf = torch.tensor([2.0, 3.0, -1.0]), torch.tensor([-1.0, -1.0, 3.0])
    assert merge("ties", base, sft, rlhf, 0.75, density=1.0).tolist() == [-1.0, 3.0, 3.0]
    assert merge("ties", base, sft, rlhf, 0.0, density=1.0).tolist() == [2.0, 3.0, -1.0]


@pytest.mark.parametrize(
    ("dtype", "ratio", "up", "down"),
    [
        (torch.float32, 0.4, 2.0, 3.0),
        (torch.float32, 0.4, 4.0, 6.0),
        (torch.float32, 0.2, 1.0, 4.0),
        (torch.float32, 0.5, 3.0, 3.0),
        (torch.float64, 0.2, 1.0, 4.0),
        (torch.float64, 0.5, 3.0, 3.0),
    ],
)
def test_a_weighted_sum_of_zero_goes_up(dtype: torch.dtype, ratio: float, up: float, down: float) -> None:
    base = torch.zeros(2, dtype=dtype)
    sft, rlhf = torch.tensor([up, -up], dtype=dtype), torch.tensor([-down, down], dtype=dtype)
    assert merge("ties", base, sft, rlhf, ratio, density=1.0).tolist() == pytest.approx([up, down])


@pytest.mark.parametrize("ratio", [1e-6, 0.3, 0.5, 0.9])
def test_the_mean_of_those_that_agree_by_its_definition(ratio: float) -> None:
    """Elected by arithmetic, with weights that are shares; any other weights go by the definition, which is compared with here."""
    draws = torch.Generator().manual_seed(0)
    one, other = (torch.nn.functional.hardshrink(torch.randn(10_000, generator=draws), 0.7) for _ in range(2))
    for size in (1.0, 1e-20, 1e20):
        sft, rlhf = one * size, other * size
        total = (sft * (1 - ratio)).add_(rlhf * ratio)
        want = _weighed(sft.clone(), rlhf.clone(), (1 - ratio, ratio), total)
        assert torch.allclose(agreed(sft, rlhf, ratio, torch.zeros_like(want), 1.0), want, rtol=1e-6, atol=0)


def test_nan_has_no_rank() -> None:
    """Also where most are NaN; what is not finite is an error later on, or a mask."""
    nan, base = math.nan, torch.zeros(8)
    rlhf = torch.tensor([nan, nan, nan, 4.0, 5.0, 6.0, 7.0, 8.0])
    for dtype in (torch.float32, torch.float64):
        got = merge("ties", base.to(dtype), base.to(dtype), rlhf.to(dtype), 1.0, density=0.25)
        assert got.isnan().tolist() == [True] * 3 + [False] * 5
        assert got[3:].tolist() == [0, 0, 0, 7, 8]


def test_breadcrumbs() -> None:
    """Of five: the largest goes (gamma .2), two are kept (density .4), two go at the lower end."""
    assert by_hand("breadcrumbs", 1.0, density=0.4, gamma=0.2) == [2.0, 1.0, 1.0, 0.0, -2.0]
    assert by_hand("breadcrumbs", 0.0, density=0.4, gamma=0.2) == [1.0, 0.5, 1.0, 1.0, -2.5]
    assert by_hand("breadcrumbs", 1.0, density=1.0, gamma=0.2) == RLHF  # nothing is left to drop


def test_slerp() -> None:
    """Two vectors at a right angle: a third of the way is 30 degrees."""
    zero = torch.zeros(2)
    got = merge("slerp", zero, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1 / 3).tolist()
    assert got == pytest.approx([math.cos(math.pi / 6), 0.5])
    parallel = merge("slerp", zero, torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), 0.25).tolist()
    assert parallel == [1.5, 1.5]
    assert merge("slerp", zero, torch.tensor([0.0, 0.0]), torch.tensor([4.0, 8.0]), 0.25).tolist() == [1.0, 2.0]


def test_model_stock() -> None:
    """Changes at 45 degrees: t = 2 cos / (1 + cos) = 0.828 of the way to their average."""
    base, t = torch.tensor([1.0, 2.0, 3.0]), 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    sft, rlhf = base + torch.tensor([1.0, 0.0, 0.0]), base + torch.tensor([1.0, 1.0, 0.0])
    assert merge("model_stock", base, sft, rlhf, 0.5).tolist() == pytest.approx([1 + t, 2 + t / 2, 3])
    assert merge("model_stock", base, sft, rlhf, 0.25).tolist() == pytest.approx([1 + t, 2 + t / 4, 3])
    assert merge("model_stock", base, sft, rlhf, 1.5).tolist() == pytest.approx([1 + t, 2 + t * 1.5, 3])
    for other in (base - torch.tensor([1.0, 0.5, 0.0]), base + torch.tensor([0.0, 7.0, 1.0]), base):
        assert torch.equal(merge("model_stock", base, sft, other, 0.5), base)  # apart, at a right angle, unchanged
    assert merge("model_stock", base, sft, base + 3 * (sft - base), 0.5).tolist() == [
        3.0,
        2.0,
        3.0,
    ]  # one way: the average


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_model_stock_in_blocks(dtype: torch.dtype) -> None:
    """By the loop and by torch, against whole tensors in float64."""
    draws = np.random.default_rng(6)
    base = draws.normal(0, 0.02, (1 << 17) + 1003)
    shared = draws.normal(0, 1e-3, len(base))
    models = [
        torch.tensor(x).to(dtype) for x in (base, *(base + shared + draws.normal(0, 1e-3, len(base)) for _ in range(2)))
    ]
    wide = [m.double() for m in models]
    one, other = wide[1] - wide[0], wide[2] - wide[0]
    cosine = float(one @ other / (one.norm() * other.norm()))
    want = wide[0] + 2 * cosine / (1 + cosine) * (0.7 * one + 0.3 * other)
    got = merge("model_stock", *models, 0.3)
    assert 0.45 < cosine < 0.55
    assert torch.allclose(got.double(), want, rtol=0, atol=2**-9 if dtype is torch.bfloat16 else 2e-8)


@pytest.mark.parametrize("method", DELTA)
def test_everything_kept_and_nothing(method: str) -> None:
    everything = {"della": {"density": 1.0, "epsilon": 0.0}}.get(method, {"density": 1.0})
    nothing = {"della": {"density": 0.0, "epsilon": 0.0}}.get(method, {"density": 0.0})
    if method != "task_arithmetic":
        assert by_hand(method, 1.0, **everything) == RLHF
        assert by_hand(method, 0.0, **everything) == SFT
        assert by_hand(method, 0.3, **nothing) == BASE


def trimmed(change: np.ndarray, first: int, last: int) -> np.ndarray:
    """The elements from rank `first` to before `last` by magnitude, of equal ones the first first."""
    order = np.argsort(-np.abs(change.astype(np.float32)), kind="stable")
    result = np.zeros_like(change)
    result[order[first:last]] = change[order[first:last]]
    return result


def consensus(one: np.ndarray, other: np.ndarray, ratio: float) -> np.ndarray:
    weights = np.array([1 - ratio, ratio])[:, None]
    weighted = weights * np.stack([one, other])
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agrees = np.sign(weighted) == sign
    total = (weights * agrees).sum(0)
    return np.where(total != 0, (weighted * agrees).sum(0) / np.where(total == 0, 1, total), 0)


def expected(
    method: str, base: np.ndarray, sft: np.ndarray, rlhf: np.ndarray, ratio: float, density: float
) -> np.ndarray:
    changes, count = [sft - base, rlhf - base], len(base)
    keep = math.floor(Fraction(repr(density)) * count)
    if method == "ties":
        return base + consensus(*(trimmed(change, 0, keep) for change in changes), ratio)
    top = min(math.floor(Fraction("0.01") * count), count - keep)
    one, other = (trimmed(change, top, top + keep) for change in changes)
    return base + (1 - ratio) * one + ratio * other


@pytest.mark.parametrize("density", [0.0, 0.001, 0.29, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "float64", "equal", "sparse"])
def test_thresholds_against_sorting(method: str, kind: str, density: float) -> None:
    """Among them tensors that are nearly all ties."""
    draws = np.random.default_rng(0)
    base = draws.normal(0, 0.02, 10_007)
    sft, rlhf = (base + draws.normal(0, 2e-4, len(base)) for _ in range(2))
    if kind == "equal":
        sft, rlhf = base + np.round(draws.normal(0, 1, len(base))) / 256, base + 1 / 128
    if kind == "sparse":
        sft = np.where(draws.random(len(base)) < 0.1, sft, base)
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(kind, torch.float32)
    models = [torch.tensor(x).to(dtype) for x in (base, sft, rlhf)]
    wide = torch.float64 if kind == "float64" else torch.float32
    models = [x.to(wide) for x in models]
    numbers = [x.numpy() for x in models]
    changes = [(x - models[0]).numpy() for x in models[1:]]
    exact = numbers[0].astype(np.float64)
    want = expected(method, exact, exact + changes[0], exact + changes[1], 0.3, density)
    for block in (10_007, 1000, 64):
        got = merge(method, *models, 0.3, density=density, block=block)
        assert np.abs(got.double().numpy() - want).max() < (1e-15 if kind == "float64" else 1e-8)


def test_della_keeps_large_changes_more_often() -> None:
    """Each element's chance by its rank; what is kept is divided by it."""
    count, density, epsilon = 200_000, 0.5, 0.3
    change = torch.rand(count) * 0.9 + 0.1
    zero = torch.zeros(count)
    got = merge("della", zero, zero, change, 1.0, density=density, epsilon=epsilon)
    order = change.argsort()
    ranked, sizes = got[order], change[order]
    for part in range(10):
        piece = slice(part * count // 10, (part + 1) * count // 10)
        chance = density - epsilon + 2 * epsilon * (part + 0.5) / 10
        kept = (ranked[piece] != 0).float().mean().item()
        assert kept == pytest.approx(chance, abs=5 * math.sqrt(0.25 / (count / 10)))
        assert ranked[piece].sum().item() == pytest.approx(sizes[piece].sum().item(), rel=0.05)
    factors = (ranked / sizes)[ranked != 0]
    assert factors.min().item() == pytest.approx(1 / (density + epsilon), rel=5e-3)
    assert factors.max().item() < 1 / (density - epsilon) * 1.001
