"""Descents in the feasible set, against solutions found another way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amatax.fitting.optimum import Function, Optimum, _Trace, corners, distinct, minimise


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.6])
def test_corners_are_feasible_and_begin_with_uniform(alpha: float) -> None:
    found = corners(3, [1 / 3] * 3, alpha)
    assert found[0] == pytest.approx([alpha] * 3)
    assert len(found) > 3
    for point in found:
        assert sum(point) / 3 == pytest.approx(alpha)
        assert all(0 <= v <= 1 for v in point)


def test_the_descent_finds_the_constrained_minimum() -> None:
    """(a - c)^2 with the mean at .4: the nearest feasible point, by hand."""
    centre = [1.4, 0.1, 0.3]

    def function(a: list[float]) -> tuple[float, list[float]]:
        return sum((x - c) ** 2 for x, c in zip(a, centre, strict=True)), [
            2 * (x - c) for x, c in zip(a, centre, strict=True)
        ]

    found = minimise(function, [0.4] * 3, [1 / 3] * 3, 0.4, tolerance=1e-12, most=50)
    assert found.values == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)
    free = minimise(function, [0.4] * 3, [1 / 3] * 3, None, tolerance=1e-12, most=50)
    assert free.values == pytest.approx([1.0, 0.1, 0.3], abs=1e-6)


def test_distinct_optima_best_first() -> None:
    found = distinct([Optimum([a, 1 - a], value, 1, []) for a, value in ((0.2, 3.0), (0.21, 2.0), (0.9, 2.5))])
    assert [o.values[0] for o in found] == [0.21, 0.9]


def bowl(hessian: np.ndarray, centre: np.ndarray) -> Function:
    """(a - c) H (a - c) / 2."""

    def function(values: list[float]) -> tuple[float, list[float]]:
        away = np.array(values) - centre
        return float(away @ hessian @ away) / 2, [float(v) for v in hessian @ away]

    return function


def random_bowl(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A Hessian with curvatures from 1 to 0.01, and a centre that may lie outside the box."""
    random = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(random.normal(size=(count, count)))
    return turned @ np.diag(np.geomspace(1, 0.01, count)) @ turned.T, random.uniform(-0.3, 1.3, count)


def best_on_faces(hessian: np.ndarray, centre: np.ndarray, shares: np.ndarray, alpha: float) -> float:
    """The least value in the box at the mean: every choice of ratios at a bound, the others by Lagrange's equations."""
    count, best = len(centre), np.inf
    for fixed in itertools.product((None, 0.0, 1.0), repeat=count):
        free = [i for i, end in enumerate(fixed) if end is None]
        point = np.array([end or 0.0 for end in fixed])
        if free:
            held = [i for i in range(count) if i not in free]
            system = np.block(
                [[hessian[np.ix_(free, free)], shares[free][:, None]], [shares[free][None], np.zeros((1, 1))]]
            )
            known = hessian[free] @ centre - hessian[np.ix_(free, held)] @ point[held]
            point[free] = np.linalg.solve(system, [*known, alpha - shares[held] @ point[held]])[:-1]
        if abs(shares @ point - alpha) < 1e-9 and (point >= -1e-9).all() and (point <= 1 + 1e-9).all():
            away = point - centre
            best = min(best, away @ hessian @ away / 2)
    return best


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 5),
    alpha=st.sampled_from([0.05, 0.3, 0.5, 0.9]),
    known=st.integers(0, 5),
)
def test_the_constrained_minimum_whatever_was_known(seed: int, count: int, alpha: float, known: int) -> None:
    """From nothing, from the Hessian, from another one, from one that says that nearly all is flat, and from such of another scale."""
    hessian, centre = random_bowl(seed, count)
    shares = np.random.default_rng(seed).dirichlet(np.ones(count) * 5)
    curvature = [
        None,
        hessian,
        random_bowl(seed + 1, count)[0],
        np.diag([1e-9] * (count - 1) + [1.0]),
        1e4 * hessian,
        1e-4 * hessian,
    ][known]
    found = minimise(
        bowl(hessian, centre), [alpha] * count, list(shares), alpha, tolerance=1e-9, most=100, curvature=curvature
    )
    assert all(0 <= v <= 1 for v in found.values)
    assert shares @ found.values == pytest.approx(alpha, abs=1e-9)
    assert found.value <= best_on_faces(hessian, centre, shares, alpha) + 1e-6


def test_of_a_weak_signal_too_what_was_known_and_is_wrong_ends_no_descent() -> None:
    """All there is to gain is 1e-4: far less than that stands in the slope alone."""
    function, wrong = bowl(np.eye(3) * 1e-3, np.array([0.9, 0.2, 0.1])), np.eye(3) * 1e3
    found = minimise(function, [0.4] * 3, [1 / 3] * 3, 0.4, tolerance=2e-6, most=60, curvature=wrong)
    assert found.value <= best_on_faces(np.eye(3) * 1e-3, np.array([0.9, 0.2, 0.1]), np.full(3, 1 / 3), 0.4) + 2e-6


def test_what_one_descent_learns_saves_the_next_one_passes() -> None:
    hessian, centre = random_bowl(3, 4)
    first = minimise(bowl(hessian, centre), [0.4] * 4, [0.25] * 4, 0.4, tolerance=1e-8, most=100)
    near = bowl(hessian, centre + 0.03)
    anew = minimise(near, [0.4] * 4, [0.25] * 4, 0.4, tolerance=1e-8, most=100)
    carried = minimise(near, first.values, [0.25] * 4, 0.4, tolerance=1e-8, most=100, curvature=first.curvature)
    assert carried.value == pytest.approx(anew.value, abs=1e-7)
    assert carried.steps <= 4 < anew.steps


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_a_limit_is_reached_and_kept(seed: int, alpha: float | None) -> None:
    """A likelihood that falls towards RLHF within a divergence that grows from SFT, against scipy from many starts, precisely."""
    from scipy import optimize

    hessian, _ = random_bowl(seed, 3)
    centre = 1 + np.random.default_rng(seed).uniform(0, 0.2, 3)
    wall = np.abs(random_bowl(seed + 99, 3)[0])
    falling, growing = bowl(hessian, centre), bowl(wall, np.zeros(3))
    bound = growing([0.1] * 3)[0] * (1.0 if alpha is None else 0.98)
    rough = minimise(falling, [0.1] * 3, [1 / 3] * 3, alpha, tolerance=1e-4, most=20, limit=(growing, bound))
    found = minimise(falling, rough.values, [1 / 3] * 3, alpha, tolerance=1e-6, most=60, limit=(growing, bound))
    kept = {"type": "ineq", "fun": lambda x: 1 - growing(list(x))[0] / bound}
    mean = [{"type": "eq", "fun": lambda x: sum(x) / 3 - alpha}] if alpha is not None else []
    best = np.inf
    for start in np.random.default_rng(0).uniform(0, 0.3, (6, 3)):
        one = optimize.minimize(
            lambda x: falling(list(x))[0],
            start,
            method="SLSQP",
            bounds=[(0, 1)] * 3,
            constraints=[kept, *mean],
            options={"ftol": 1e-13, "maxiter": 500},
        )
        best = min(best, one.fun) if one.success else best
    assert growing(found.values)[0] <= bound * 1.001
    assert found.value <= best + 2e-4  # it keeps half a thousandth inside the limit


@pytest.mark.parametrize("seed", range(12))
def test_a_rough_limit_is_kept_without_going_round_and_round(seed: int) -> None:
    """In 16 bits a divergence jumps by a few per cent from one point to the next."""
    falling, growing = bowl(np.eye(2), np.array([1.2, 1.1])), bowl(np.diag([1.0, 0.3]), np.zeros(2))

    def rough(values: list[float]) -> tuple[float, list[float]]:
        value, slope = growing(values)
        jump = np.random.default_rng([seed, *(int(v * 1e6) for v in values)]).uniform(-0.04, 0.04)
        return value * (1 + jump), slope

    bound = 0.1
    found = minimise(falling, [0.5, 0.5], [0.5, 0.5], None, tolerance=1e-6, most=60, limit=(rough, bound))
    smooth = minimise(falling, [0.5, 0.5], [0.5, 0.5], None, tolerance=1e-6, most=60, limit=(growing, bound))
    assert rough(found.values)[0] <= bound * 1.001
    assert found.value <= smooth.value * 1.1
    assert found.steps <= 80


def test_evaluations_outside_a_limit_do_not_end_a_descent() -> None:
    """SLSQP comes to a limit from outside; a start within it is not the end because of that."""
    falling, growing = bowl(np.eye(2), np.ones(2)), bowl(np.eye(2), np.zeros(2))
    trace = _Trace(falling, np.array([0.5, 0.5]), None, 1e-6, (growing, 0.01))
    trace.evaluate(np.array([0.05, 0.05]))
    for step in range(10):
        trace.evaluate(np.array([0.9 - 0.05 * step, 0.9]))
    assert trace.best is not None
    assert list(trace.best[1]) == [0.05, 0.05]
