"""Intervals against a problem whose answer is known: n points in K dimensions, of which the mean is estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from amatax.fitting.bootstrap import Interval
from amatax.fitting.intervals import NORMAL, directions, mean_interval, ratio_covariance, ratio_intervals
from amatax.fitting.likelihood import Measured

PROMPTS = 400
SPREADS = np.array([0.2, 0.05, 0.1])


def points(seed: int, middle: list[float]) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, SPREADS, (PROMPTS, 3))


def distances(cloud: np.ndarray) -> Callable[[list[float], bool], Measured]:
    """f(a) = sum over points of |a - point|^2 / 2, a token each."""

    def measure(values: list[float], gradient: bool) -> Measured:
        apart = np.array(values) - cloud
        sums = torch.tensor((apart**2).sum(1) / 2)
        slope = torch.tensor(apart.mean(0)) if gradient else None
        return Measured(sums, torch.ones(len(cloud), dtype=torch.float64), slope)

    return measure


def intervals(
    measure: Callable[[list[float], bool], Measured],
    values: Sequence[float],
    names: list[str],
    *,
    held: bool,
    known: Sequence[tuple[Sequence[float], Measured]] = (),
    precise: bool = True,
) -> list[Interval | None]:
    basis = directions([0 < value < 1 for value in values], [1 / 3] * 3, held=held)
    return ratio_intervals(values, ratio_covariance(measure, values, basis, [names], known=known, precise=precise))


def test_intervals_of_a_known_problem() -> None:
    cloud = points(0, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    middle = cloud.mean(0)
    found = intervals(distances(cloud), middle.tolist(), names, held=False)
    for interval, value, error in zip(found, middle, cloud.std(0, ddof=1) / np.sqrt(PROMPTS), strict=True):
        assert interval is not None
        assert interval.value == pytest.approx(value)
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)


def test_intervals_on_the_plane_of_the_mean() -> None:
    """With the mean held, the errors of all that moves are those of the points projected onto the plane."""
    cloud = points(1, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    flat = cloud - (cloud.mean(1, keepdims=True) - 0.5)
    found = intervals(distances(cloud), flat.mean(0).tolist(), names, held=True)
    for interval, error in zip(found, flat.std(0, ddof=1) / np.sqrt(PROMPTS), strict=True):
        assert interval is not None
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)


BEST = np.array([0.5, 0.3, 0.7])  # the mean is held: two directions to move in
ONE, OTHER = [0.02, -0.02, 0.0], [0.01, 0.02, -0.03]


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ([], [([0.0, 0.0, 0.0], True), (None, True), (None, False)]),
        ([([0.0, 0.0, 0.0], True)], [(None, True), (None, False)]),
        (
            [([0.0, 0.0, 0.0], False), (ONE, True)],
            [(None, True)],
        ),  # the middle is then at ONE, and the optimum serves as the last
        ([([0.0, 0.0, 0.0], True), (ONE, True)], [(None, False)]),
        ([([0.0, 0.0, 0.0], True), (ONE, True), (OTHER, False)], []),
        ([([0.0, 0.0, 0.0], True), (ONE, False), (OTHER, False)], [(None, True)]),  # two values are no Hessian
        ([([0.0, 0.0, 0.0], True), (ONE, True), ([0.03, -0.03, 0.0], True)], [(None, False)]),  # the same way twice
        (
            [([0.0, 0.0, 0.0], True), ([0.2, -0.2, 0.0], True), ([0.01, 0.01, 0.01], True), ([1e-4, -1e-4, 0.0], True)],
            [(None, True), (None, False)],  # too far, off the plane, too short
        ),
    ],
)
@pytest.mark.parametrize("precise", [True, False])
def test_points_of_the_descent_save_passes(
    known: list[tuple[list[float], bool]], asked: list[tuple[list[float] | None, bool]], precise: bool
) -> None:
    """Passes near the optimum stand for passes of our own, and the last direction needs a value alone."""
    cloud = points(1, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    made: list[tuple[np.ndarray, bool]] = []

    def measure(values: list[float], gradient: bool) -> Measured:
        made.append((np.array(values) - BEST, gradient))
        return distances(cloud)(values, gradient)

    there = [((BEST + step).tolist(), distances(cloud)((BEST + step).tolist(), told)) for step, told in known]
    found = intervals(measure, BEST.tolist(), names, held=True, known=there, precise=precise)
    flat = cloud - cloud.mean(1, keepdims=True)
    for interval, value, error in zip(found, BEST, flat.std(0, ddof=1) / np.sqrt(PROMPTS), strict=True):
        assert interval is not None
        assert interval.value == value
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)
    if precise:
        assert len(made) == len(asked)
        for (step, gradient), (place, wanted) in zip(made, asked, strict=True):
            assert gradient == wanted
            assert place is None or np.allclose(step, place)
    else:
        assert all(gradient for _, gradient in made)


def test_a_bent_likelihood_has_the_curvature_of_its_optimum() -> None:
    """f = sum of cosh of the distance: its curvature away from the optimum is another."""
    cloud = points(5, [0.5, 0.5, 0.5])

    def measure(values: list[float], gradient: bool) -> Measured:
        apart = np.array(values) - cloud
        sums = torch.tensor(np.cosh(3 * apart).sum(1))
        slope = torch.tensor(3 * np.sinh(3 * apart).mean(0)) if gradient else None
        return Measured(sums, torch.ones(len(cloud), dtype=torch.float64), slope)

    best = np.array([0.5, 0.5, 0.5])
    for _ in range(20):  # Newton
        best = best - np.sinh(3 * (best - cloud)).mean(0) / (3 * np.cosh(3 * (best - cloud)).mean(0))
    names = [str(i) for i in range(PROMPTS)]
    score, curve = 3 * np.sinh(3 * (best - cloud)), 9 * np.cosh(3 * (best - cloud)).mean(0)
    errors = score.std(0, ddof=1) / curve / np.sqrt(PROMPTS)
    for precise in (True, False):
        found = intervals(measure, best.tolist(), names, held=False, precise=precise)
        for interval, error in zip(found, errors, strict=True):
            assert interval is not None
            assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.03)


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ([], [(0.0, True), (0.01, False)]),
        ([(0.0, True)], [(0.01, False)]),
        ([(0.0, False), (-0.1, True)], [(0.01, False)]),  # the slope a step before the optimum serves
        ([(0.0, False), (-0.1, True), (0.03, False)], []),
        ([(0.0, False), (-0.2, True)], [(0.0, True), (0.01, False)]),  # too far
        ([(0.0, True), (-0.1, True), (0.001, False), (-0.03, True)], []),
        ([(0.0, False), (-0.1, False), (0.02, False), (0.05, False)], [(0.0, True)]),  # no slope among them
        ([(0.0, False), (0.003, True)], [(0.01, False)]),  # the slope of a point whose value says nothing new
        ([(0.0, False), (0.003, True), (0.02, False)], []),
        ([(0.0, False), (0.02, False), (0.023, True)], []),
        ([(0.0, False), (0.0, True)], [(0.01, False)]),
        ([(0.0, False), (0.003, True), (0.1, True)], [(0.01, False)]),
    ],
)
def test_along_a_line_the_curvature_is_that_of_the_optimum(
    known: list[tuple[float, bool]], asked: list[tuple[float, bool]]
) -> None:
    """One ratio at its bound and the mean held. f = sum of exp of the distance: it bends more with every step."""
    draws = np.random.default_rng(6).normal([0.5, 0.5], 0.2, (PROMPTS, 2))
    line, names = np.array([1.0, 0.0, -1.0]) / np.sqrt(2), [str(i) for i in range(PROMPTS)]
    made: list[tuple[float, bool]] = []

    def pass_over(values: np.ndarray, gradient: bool) -> Measured:
        grow = np.exp(np.array([3.0, 2.0]) * (values[[0, 2]] - draws))
        sums = grow.sum(1) + 2 * values[1]
        slope = np.array([3 * grow[:, 0].mean(), 2.0, 2 * grow[:, 1].mean()])
        return Measured(
            torch.tensor(sums), torch.ones(PROMPTS, dtype=torch.float64), torch.tensor(slope) if gradient else None
        )

    def measure(values: list[float], gradient: bool) -> Measured:
        made.append((float(line @ (np.array(values) - best)), gradient))
        return pass_over(np.array(values), gradient)

    best = np.array([0.5, 0.0, 0.5])

    def slope_and_bend(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grow = np.exp(np.array([3.0, 2.0]) * (point[[0, 2]] - draws))
        return (grow @ [3.0, -2.0]) / np.sqrt(2), (grow @ [9.0, 4.0]) / 2

    for _ in range(50):  # Newton along the line
        score, bend = slope_and_bend(best)
        best = best - line * score.mean() / bend.mean()
    assert 0.1 < best[0] < 0.9
    score, bend = slope_and_bend(best)
    error = score.std(ddof=1) / bend.mean() / np.sqrt(PROMPTS) / np.sqrt(2)
    there = [((best + t * line).tolist(), pass_over(best + t * line, told)) for t, told in known]
    low, middle, high = intervals(measure, best.tolist(), names, held=True, known=there)
    assert middle is None
    for interval in (low, high):
        assert interval is not None
        assert interval.high - interval.low == pytest.approx(2 * NORMAL * error, rel=0.06)
    assert [(round(abs(step), 9), gradient) for step, gradient in made] == asked


def test_responses_to_one_prompt_count_together() -> None:
    """Every point twice: the same prompt's second response tells nothing new."""
    cloud = points(2, [0.5, 0.4, 0.6])
    names = [str(i) for i in range(PROMPTS)]
    once = intervals(distances(cloud), cloud.mean(0).tolist(), names, held=False)
    doubled = np.concatenate([cloud, cloud])
    twice = intervals(distances(doubled), cloud.mean(0).tolist(), names * 2, held=False)
    for one, other in zip(once, twice, strict=True):
        assert one is not None
        assert other is not None
        assert other.low == pytest.approx(one.low, abs=1e-6)


def test_at_a_bound_or_with_few_prompts_there_is_none() -> None:
    cloud = points(3, [0.0, 0.5, 0.7])
    names = [str(i) for i in range(PROMPTS)]
    found = intervals(distances(cloud), [0.0, 0.5, 0.7], names, held=True)
    assert found[0] is None
    assert None not in found[1:]
    few = intervals(distances(cloud[:9]), [0.2, 0.5, 0.7], names[:9], held=True)
    assert few == [None] * 3
    near_one = intervals(distances(points(3, [0.5, 0.5, 0.999])), [0.5, 0.5, 0.999], names, held=False)
    assert near_one[2] is not None
    assert near_one[2].high == 1.0


def test_what_the_mean_alone_says_cannot_move_at_all() -> None:
    """Not even by rounding: the only free ratio of the mean, beside some outside it."""
    random = np.random.default_rng(0)
    for _ in range(300):
        count = int(random.integers(2, 12))
        only, shares = int(random.integers(count)), np.zeros(count)
        shares[only] = random.uniform(0.01, 1)
        basis = directions([True] * count, shares.tolist(), held=True)
        assert basis.shape == (count, count - 1)
        assert not basis[only].any()


def test_none_where_the_function_bends_downwards() -> None:
    cloud = points(3, [0.4, 0.5, 0.6])
    names = [str(i) for i in range(PROMPTS)]

    def saddle(values: list[float], gradient: bool) -> Measured:
        up, bent = distances(cloud)(values, gradient), 0.8 * (values[0] - 0.4) ** 2
        slope = None if up.gradient is None else up.gradient - torch.tensor([1.6 * (values[0] - 0.4), 0, 0])
        return Measured(up.sums - bent, up.tokens, slope)

    assert intervals(saddle, cloud.mean(0).tolist(), names, held=False) == [None] * 3


def test_no_interval_leaves_what_a_ratio_can_be() -> None:
    cloud = points(3, [0.001, 0.5, 0.999])
    names = [str(i) for i in range(PROMPTS)]
    low, _, high = intervals(distances(cloud), [0.001, 0.5, 0.999], names, held=False)
    assert low is not None
    assert high is not None
    assert (low.low, high.high) == (0.0, 1.0)
    assert low.high < 0.1 < 0.9 < high.low


@pytest.mark.parametrize(
    ("intervals", "low", "high"), [([(0.2, 1.0), None], 0.1, 0.5), ([(0.79, 0.81), None], 0.395, 0.405)]
)
def test_a_mean_goes_no_farther_than_its_ratios(
    intervals: list[tuple[float, float] | None], low: float, high: float
) -> None:
    known = [None if ends is None else Interval(0.8, *ends) for ends in intervals]
    found = mean_interval([0.8, 0.0], known, [0.5, 0.5], np.diag([0.5, 0.0]))
    assert found == pytest.approx((0.4, low, high))


def test_intervals_cover() -> None:
    """Of 300 draws the 95 % interval holds the truth in 95 % of them, give or take three standard errors."""
    truth, names, hits = [0.5, 0.4, 0.6], [str(i) for i in range(PROMPTS)], 0
    for seed in range(300):
        cloud = points(seed, truth)
        (interval, _, _) = intervals(distances(cloud), cloud.mean(0).tolist(), names, held=False)
        assert interval is not None
        hits += interval.low <= truth[0] <= interval.high
    assert 0.95 - 3 * 0.0126 < hits / 300 < 0.95 + 3 * 0.0126
