"""The minimum of a dear function by a cheap one: right whatever the cheap one says, and with few gradients if it is alike."""

from __future__ import annotations

import numpy as np
import pytest

from amatax.fitting.optimum import Function, minimise
from amatax.fitting.surrogate import _corrected, _secant, minimise_by
from tests.fitting.test_optimum import best_on_faces, bowl, random_bowl

TOLERANCE = 1e-7


class Counted:
    """A function that counts its gradients and its values."""

    def __init__(self, function: Function) -> None:
        self.function, self.gradients, self.values = function, 0, 0

    def full(self, values: list[float]) -> tuple[float, list[float]]:
        self.gradients += 1
        return self.function(values)

    def alone(self, values: list[float]) -> tuple[float, list[float]]:
        self.values += 1
        return self.function(values)[0], [np.nan] * len(values)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["alike", "steep", "other", "flat", "upside down", "itself"])
def test_the_minimum_whatever_the_cheap_one_says(seed: int, kind: str) -> None:
    count, alpha = 4, 0.3
    hessian, centre = random_bowl(seed, count)
    cheap = {
        "alike": bowl(hessian * 1.2, centre + 0.1),
        "steep": bowl(hessian * 3, centre),
        "other": bowl(*random_bowl(seed + 1, count)),
        "flat": bowl(hessian * 1e-3, centre),
        "upside down": bowl(-hessian, centre),
        "itself": bowl(hessian, centre),
    }[kind]
    counted = Counted(bowl(hessian, centre))
    found = minimise_by(
        cheap, counted.full, counted.alone, [alpha] * count, [1 / count] * count, alpha, tolerance=TOLERANCE, most=100
    )
    assert all(-1e-12 <= v <= 1 + 1e-12 for v in found.values)
    assert sum(found.values) / count == pytest.approx(alpha, abs=1e-9)
    assert found.value == pytest.approx(counted.function(found.values)[0])
    best = best_on_faces(hessian, centre, np.full(count, 1 / count), alpha)
    assert found.value <= best + 20 * TOLERANCE
    assert found.path[0] == pytest.approx(counted.function([alpha] * count)[0])


@pytest.mark.parametrize("seed", range(10))
def test_an_alike_one_saves_gradients(seed: int) -> None:
    hessian, centre = random_bowl(seed, 6)
    start, shares = [0.5] * 6, [1 / 6] * 6
    by, alone = Counted(bowl(hessian, centre)), Counted(bowl(hessian, centre))
    cheap = bowl(hessian * 0.9, centre + 0.05)
    minimise_by(cheap, by.full, by.alone, start, shares, 0.5, tolerance=TOLERANCE, most=100)
    minimise(alone.full, start, shares, 0.5, tolerance=TOLERANCE, most=100)
    assert by.gradients <= 4 < alone.gradients
    assert by.values <= 1


def test_of_a_weak_signal_too_a_cheap_one_that_leads_nowhere_is_not_the_end() -> None:
    """The cheap one rises whatever the step; all there is to gain is 1e-4, and far less than that stands in the slope alone."""
    hessian, centre, start = np.eye(3) * 1e-3, np.array([0.9, 0.2, 0.1]), [0.4] * 3
    counted = Counted(bowl(hessian, centre))

    def cliff(values: list[float]) -> tuple[float, list[float]]:
        return float(max(abs(a - b) for a, b in zip(values, start, strict=True)) > 1e-9), [0.0] * 3

    found = minimise_by(cliff, counted.full, counted.alone, start, [1 / 3] * 3, 0.4, tolerance=2e-6, most=60)
    assert found.value <= best_on_faces(hessian, centre, np.full(3, 1 / 3), 0.4) + 2e-6


def test_a_last_step_that_gains_less_than_foreseen_does_not_stand() -> None:
    """A wall stands where the cheap one sees none: half of what was foreseen is not there."""

    def wall(values: list[float]) -> tuple[float, list[float]]:
        depth = max(0.0, values[0] - 0.41)
        return -values[0] * 1e-5 + 1e-2 * depth**2, [-1e-5 + 2e-2 * depth, 0.0]

    def cheap(values: list[float]) -> tuple[float, list[float]]:
        return 2e-4 * (values[0] - 0.5) ** 2, [4e-4 * (values[0] - 0.5), 0.0]

    counted = Counted(wall)
    found = minimise_by(
        cheap,
        counted.full,
        counted.alone,
        [0.4, 0.6],
        [0.5, 0.5],
        0.5,
        tolerance=1e-8,
        most=100,
        curvature=np.eye(2) * 4e-4,
    )
    assert found.values[0] == pytest.approx(0.41, abs=1e-3)
    assert counted.values >= 1
    assert counted.gradients > 1


@pytest.mark.parametrize("bend", [0.75, 0.9, 1.2, 1.35])
def test_where_one_direction_is_free_a_value_tells_what_is_left(bend: float) -> None:
    """All other ratios lie at their bounds: no second gradient, and no more is left than was promised."""
    slopes, cheap_bend = np.array([-0.05, 0.3, -0.02, -0.6]), 0.1

    def curve(size: float) -> Function:
        def function(values: list[float]) -> tuple[float, list[float]]:
            away = np.array(values) - [0.4, 0.0, 0.6, 1.0]
            return float(slopes @ away) + size * float(away @ away) / 2, (slopes + size * away).tolist()

        return function

    tolerance = 5e-5
    counted = Counted(curve(cheap_bend * bend))
    start = [0.4, 0.0, 0.6, 1.0]
    found = minimise_by(
        curve(cheap_bend), counted.full, counted.alone, start, [0.25] * 4, 0.5, tolerance=tolerance, most=100
    )
    best = minimise(counted.function, start, [0.25] * 4, 0.5, tolerance=1e-12, most=100)
    gain = counted.function(start)[0] - best.value
    assert gain > 20 * tolerance  # in more directions it would have taken a second gradient
    assert (counted.gradients, counted.values) == (1, 1)
    assert found.value <= best.value + 5 * tolerance
    assert found.values[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bend", [0.7, 1.35])
def test_what_a_value_says_is_left_on_a_line_takes_another_value(bend: float) -> None:
    def curve(size: float) -> Function:
        def function(values: list[float]) -> tuple[float, list[float]]:
            away = np.array(values) - [0.4, 0.6]
            return float(size * away @ away / 2 - 0.02 * away[0]), (size * away - [0.02, 0]).tolist()

        return function

    tolerance, start = 1e-5, [0.4, 0.6]
    counted = Counted(curve(0.1 * bend))
    found = minimise_by(curve(0.1), counted.full, counted.alone, start, [0.5] * 2, 0.5, tolerance=tolerance, most=100)
    best = minimise(counted.function, start, [0.5] * 2, 0.5, tolerance=1e-12, most=100)
    assert (counted.gradients, counted.values) == (1, 2)
    assert found.value <= best.value + tolerance
    assert found.path == sorted(found.path, reverse=True)


@pytest.mark.parametrize("seed", [2, 10, 101, 124])
def test_a_last_step_speaks_for_no_other_direction(seed: int) -> None:
    """Bowls a thousand times as steep one way as another, the cheap one half of it another's: its last gain is nearly there, and more is left elsewhere."""
    count, alpha, tolerance = 9, 0.6, 1e-5
    drawn = np.random.default_rng(seed)

    def steep() -> tuple[np.ndarray, np.ndarray]:
        axes = np.linalg.qr(drawn.normal(size=(count, count)))[0]
        return 0.2 * axes @ np.diag(10 ** drawn.uniform(-3, 0, count)) @ axes.T, drawn.uniform(-0.3, 1.3, count)

    (one, centre), (other, away) = steep(), steep()
    counted = Counted(bowl(one, centre))
    cheap = bowl((one + other) / 2, np.linalg.solve(one + other, one @ centre + other @ away))
    start, shares = [alpha] * count, [1 / count] * count
    found = minimise_by(cheap, counted.full, counted.alone, start, shares, alpha, tolerance=tolerance, most=100)
    best = min(
        minimise(counted.function, begin, shares, alpha, tolerance=1e-13, most=400).value
        for begin in (start, found.values)
    )
    assert found.value <= best + 12 * tolerance


@pytest.mark.parametrize("times", [5, 20])
def test_one_that_bends_far_too_much_along_a_valley_does_not_make_it_crawl(times: float) -> None:
    """Few samples can be so: each step is then a fraction of what is left, and gains next to nothing."""
    along = np.array([1, 0, -1]) / np.sqrt(2)

    def valley(size: float) -> Function:
        def function(values: list[float]) -> tuple[float, list[float]]:
            away = np.array(values) - [0.7, 0.2, 0.3]
            hessian = 0.5 * np.eye(3) + (size - 0.5) * np.outer(along, along)
            return float(away @ hessian @ away / 2), (hessian @ away).tolist()

        return function

    counted, start, tolerance = Counted(valley(0.02)), [0.45, 0.2, 0.55], 1e-6
    cheap = valley(0.02 * times)
    found = minimise_by(cheap, counted.full, counted.alone, start, [1 / 3] * 3, 0.4, tolerance=tolerance, most=100)
    assert found.value <= 2 * tolerance
    assert counted.gradients <= 4


@pytest.mark.parametrize("seed", range(5))
def test_what_gradients_told_of_the_bend_is_kept(seed: int) -> None:
    """A symmetric matrix is known when as many steps as it has rows have told of it; earlier steps stay right."""
    drawn = np.random.default_rng(seed)
    factor, bend = drawn.normal(size=(3, 3)), np.zeros((3, 3))
    wanted = factor + factor.T
    steps = drawn.normal(size=(3, 3))
    for i, step in enumerate(steps):
        bend = _secant(bend, step, wanted @ step)
        assert np.allclose(bend, bend.T)
        assert np.allclose(bend @ steps[: i + 1].T, wanted @ steps[: i + 1].T)
    assert np.allclose(bend, wanted)


def test_steps_that_tell_nothing_leave_the_bend_as_it_was() -> None:
    bend, step = np.diag([2.0, 1.0]), np.array([0.5, 0.0])
    for here, change in (
        (step, bend @ step),  # what was known already
        (step, bend @ step + [0.0, 1.0]),  # what is missed stands upright on the step
        (step * 1e-4, [1.0, 0.0]),  # so short that rounding decides
    ):
        assert np.array_equal(_secant(bend, here, np.array(change)), bend)
    down = _secant(bend, step, np.array([-3.0, 0.0]))  # it may bend downwards
    assert np.allclose(down @ step, [-3.0, 0.0])


def test_the_gradient_of_the_corrected_one() -> None:
    tilt, bend, about = np.array([0.3, -0.2]), np.array([[2.0, 0.5], [0.5, -1.0]]), [0.4, 0.6]
    corrected = _corrected(bowl(np.diag([1.0, 3.0]), np.array([0.1, 0.2])), tilt, bend, about)
    point, size = [0.7, 0.1], 1e-6
    for i, slope in enumerate(corrected(point)[1]):
        ends = [corrected([v + sign * size * (i == j) for j, v in enumerate(point)])[0] for sign in (1, -1)]
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-6)
    assert corrected(about)[0] == pytest.approx(bowl(np.diag([1.0, 3.0]), np.array([0.1, 0.2]))(about)[0])
