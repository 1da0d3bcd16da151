"""Intervals against a problem whose answer is known: n points in K dimensions, of which the mean is estimated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from amatax.fitting.evidence import NORMAL, Interval, paired_bootstrap, ratio_intervals, verdict
from amatax.fitting.likelihood import Measured

PROMPTS = 400
SPREADS = np.array([0.2, 0.05, 0.1])


def points(seed: int, middle: list[float]) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, SPREADS, (PROMPTS, 3))


def distances(cloud: np.ndarray) -> Callable[[list[float]], Measured]:
    """f(a) = sum over points of |a - point|^2 / 2, a token each."""

    def measure(values: list[float]) -> Measured:
        apart = np.array(values) - cloud
        sums = torch.tensor((apart**2).sum(1) / 2)
        return Measured(sums, torch.ones(len(cloud), dtype=torch.float64), torch.tensor(apart.mean(0)))

    return measure


def test_intervals_of_a_known_problem() -> None:
    cloud = points(0, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    middle = cloud.mean(0)
    found = ratio_intervals(distances(cloud), middle.tolist(), [1 / 3] * 3, names, held=False)
    for interval, value, error in zip(found, middle, cloud.std(0, ddof=1) / np.sqrt(PROMPTS), strict=True):
        assert interval is not None
        assert interval.value == pytest.approx(value)
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)


def test_intervals_on_the_plane_of_the_mean() -> None:
    """With the mean held, the errors of all that moves are those of the points projected onto the plane."""
    cloud = points(1, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    flat = cloud - (cloud.mean(1, keepdims=True) - 0.5)
    found = ratio_intervals(distances(cloud), flat.mean(0).tolist(), [1 / 3] * 3, names, held=True)
    for interval, error in zip(found, flat.std(0, ddof=1) / np.sqrt(PROMPTS), strict=True):
        assert interval is not None
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)


def test_points_of_the_descent_save_passes() -> None:
    """Points near the optimum stand for steps of our own; those too far, off the face or along a known one do not."""
    cloud = points(1, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    best = np.array([0.5, 0.3, 0.7])
    asked: list[list[float]] = []

    def measure(values: list[float]) -> Measured:
        asked.append(values)
        return distances(cloud)(values)

    def found(*known: list[float]) -> list[Interval | None]:
        asked.clear()
        moved = [(best + step).tolist() for step in known]
        return ratio_intervals(measure, best.tolist(), [1 / 3] * 3, names, held=True, known=[*moved, best.tolist()])

    own = found()
    assert len(asked) == 3
    for known, passes in (
        ([[0.02, -0.02, 0.0]], 1),
        ([[0.02, -0.02, 0.0], [0.01, 0.02, -0.03]], 0),
        ([[0.02, -0.02, 0.0], [0.03, -0.03, 0.0]], 1),  # the same way twice
        ([[0.2, -0.2, 0.0], [0.01, 0.01, 0.01], [1e-4, -1e-4, 0.0]], 2),  # too far, off the plane, too short
    ):
        theirs = found(*known)
        ours = [point for point in asked if not any(np.allclose(point, best + step) for step in (*known, [0, 0, 0]))]
        assert len(ours) == passes
        for one, other in zip(own, theirs, strict=True):
            assert one is not None and other is not None
            assert other == pytest.approx(one, rel=0.02)


def test_responses_to_one_prompt_count_together() -> None:
    """Every point twice: the same prompt's second response tells nothing new."""
    cloud = points(2, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    once = ratio_intervals(distances(cloud), cloud.mean(0).tolist(), [1 / 3] * 3, names, held=False)
    doubled = np.concatenate([cloud, cloud])
    twice = ratio_intervals(distances(doubled), cloud.mean(0).tolist(), [1 / 3] * 3, names * 2, held=False)
    for one, other in zip(once, twice, strict=True):
        assert one is not None
        assert other is not None
        assert other.low == pytest.approx(one.low, abs=1e-6)


def test_at_a_bound_or_with_few_prompts_there_is_none() -> None:
    cloud = points(3, [0.0, 0.5, 0.7])
    names = [str(i) for i in range(PROMPTS)]
    found = ratio_intervals(distances(cloud), [0.0, 0.5, 0.7], [1 / 3] * 3, names, held=True)
    assert found[0] is None
    assert None not in found[1:]
    few = ratio_intervals(distances(cloud[:9]), [0.2, 0.5, 0.7], [1 / 3] * 3, names[:9], held=True)
    assert few == [None] * 3
    near_one = ratio_intervals(
        distances(points(3, [0.5, 0.5, 0.999])), [0.5, 0.5, 0.999], [1 / 3] * 3, names, held=False
    )
    assert near_one[2] is not None
    assert near_one[2].high == 1.0


def test_intervals_cover() -> None:
    """Of 300 draws the 95 % interval holds the truth in 95 % of them, give or take three standard errors."""
    truth, names, hits = [0.5, 0.4, 0.6], [str(i) for i in range(PROMPTS)], 0
    for seed in range(300):
        cloud = points(seed, truth)
        (interval, _, _) = ratio_intervals(distances(cloud), cloud.mean(0).tolist(), [1 / 3] * 3, names, held=False)
        assert interval is not None
        hits += interval.low <= truth[0] <= interval.high
    assert 0.95 - 3 * 0.0126 < hits / 300 < 0.95 + 3 * 0.0126


def test_the_bootstrap_is_normal_for_many_prompts() -> None:
    generator = np.random.default_rng(4)
    apart = generator.normal(-0.1, 1.0, PROMPTS)
    tokens = torch.full((PROMPTS,), 10.0, dtype=torch.float64)
    other = torch.tensor(generator.normal(20.0, 3.0, PROMPTS))
    one = Measured(other + torch.tensor(apart), tokens, None)
    found = paired_bootstrap(one, Measured(other, tokens, None), [str(i) for i in range(PROMPTS)], seed=0)
    error = apart.std(ddof=1) / np.sqrt(PROMPTS) / 10
    assert found.value == pytest.approx(apart.mean() / 10)
    assert found.low == pytest.approx(found.value - NORMAL * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + NORMAL * error, abs=0.1 * error)


@pytest.mark.parametrize(
    ("low", "high", "prompts", "word"),
    [(-2, -1, 10, "better"), (1, 2, 10, "worse"), (-1, 1, 10, "indistinguishable"), (-2, -1, 9, "too few")],
)
def test_verdicts(low: float, high: float, prompts: int, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), prompts) == word
