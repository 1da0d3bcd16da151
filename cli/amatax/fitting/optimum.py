"""min f(a) over the ratios with every a in 0..1 and their weighted mean at alpha (AMA, Eq. 8), by sequential quadratic programming.

The feasible set is a box cut by one plane: scipy's SLSQP keeps to both exactly and needs about ten gradients. The likelihood is
not convex in the ratios, so several starts are tried on a part of the data first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from amatax.errors import AmataxError

Function = Callable[[list[float]], tuple[float, list[float]]]  # values -> (f, gradient)
SLACK = 1e-3  # by which a limit may be missed, relative
PATIENCE = 6  # evaluations without a gain after which a descent ends
SAME = 0.05  # two optima are one if no ratio differs by more


class _EnoughError(Exception):
    """Ends scipy's loop."""


@dataclass(frozen=True)
class Optimum:
    """Where a descent ended.

    Attributes:
        values: the unknowns.
        value: f there.
        steps: evaluations of f and its gradient.
        start: where it began.
        path: f at each iteration.
    """

    values: list[float]
    value: float
    steps: int
    start: list[float]
    path: list[float]


def minimise(
    function: Function,
    start: Sequence[float],
    shares: Sequence[float],
    alpha: float | None,
    *,
    tolerance: float,
    most: int,
    limit: tuple[Function, float] | None = None,
) -> Optimum:
    """Descend from one start.

    Args:
        function: f and its gradient.
        start: any point; it is moved onto the feasible set.
        shares: each unknown's share in the mean, 0 for those outside it.
        alpha: the mean that is held; None: it is free.
        tolerance: stops when f changes by less.
        most: iterations.
        limit: (g, bound): g(a) <= bound is kept too.

    Raises:
        AmataxError: if no point within the limit was found.
    """
    from scipy import optimize

    weights = np.array(shares, dtype=float)
    begin = np.array(feasible(start, shares, alpha))
    count = idle = 0
    path: list[float] = []
    best: tuple[float, Any] | None = None
    lowest = np.inf  # of g

    def evaluate(x: Any) -> tuple[float, Any]:
        nonlocal count, best, lowest, idle
        count += 1
        point = np.clip(x, 0, 1)
        value, gradient = function([float(v) for v in point])
        within = alpha is None or not weights.any() or abs(weights @ point - alpha) < 1e-9
        if limit is not None:
            kept = limit[0]([float(v) for v in point])[0]
            lowest = min(lowest, kept)
            within = within and kept <= limit[1] * (1 + SLACK)
        if within and (best is None or value < best[0]):
            gained = best is None or value < best[0] - tolerance
            best, idle = (value, point), 0 if gained else idle + 1
        else:
            idle += 1
        if best is not None and idle >= PATIENCE:  # the rounding of float32 keeps SLSQP's own test from ending it
            raise _EnoughError
        path.append(value)
        return value, np.array(gradient)

    constraints: list[dict[str, Any]] = []
    if alpha is not None and weights.any():
        constraints = [{"type": "eq", "fun": lambda x: weights @ x - alpha, "jac": lambda x: weights}]
    if limit is not None:
        kept_by, bound = limit
        constraints.append(
            {
                "type": "ineq",
                "fun": lambda x: bound - kept_by([float(v) for v in np.clip(x, 0, 1)])[0],
                "jac": lambda x: -np.array(kept_by([float(v) for v in np.clip(x, 0, 1)])[1]),
            }
        )
    bounds = [(0.0, 1.0)] * len(begin)
    options = {"ftol": tolerance, "maxiter": most}
    with suppress(_EnoughError):
        optimize.minimize(
            evaluate, begin, jac=True, method="SLSQP", bounds=bounds, constraints=constraints, options=options
        )
    if best is None:
        message = f"no ratios with a divergence of at most {limit[1] if limit else 0:g} were found; the least seen is {lowest:.4g}"
        raise AmataxError(message, "allow more with --max-kl, or leave alpha free")
    return Optimum([float(v) for v in best[1]], float(best[0]), count, [float(v) for v in begin], path)


def feasible(values: Sequence[float], shares: Sequence[float], alpha: float | None) -> list[float]:
    """The nearest point with every value in 0..1 and the mean at alpha: clip(values + t * shares), t by bisection."""
    point, weights = np.array(values, dtype=float), np.array(shares, dtype=float)
    if alpha is None or not weights.any():
        return [float(v) for v in np.clip(point, 0, 1)]
    reach = 2 / weights[weights > 0].min()
    low, high = -reach, reach
    for _ in range(200):
        middle = (low + high) / 2
        if weights @ np.clip(point + middle * weights, 0, 1) < alpha:
            low = middle
        else:
            high = middle
    return [float(v) for v in np.clip(point + high * weights, 0, 1)]


def corners(count: int, shares: Sequence[float], alpha: float) -> list[list[float]]:
    """Points to look at before descending: uniform, and each unknown pushed to its ends."""
    uniform = [alpha] * count
    points = [feasible(uniform, shares, alpha)]
    for i in range(count):
        for end in (0.0, 1.0):
            pushed = [*uniform[:i], end, *uniform[i + 1 :]]
            point = feasible(_held(pushed, i, shares, alpha), shares, alpha)
            if all(max(abs(a - b) for a, b in zip(point, other, strict=True)) > 1e-9 for other in points):
                points.append(point)
    return points


def _held(pushed: list[float], i: int, shares: Sequence[float], alpha: float) -> list[float]:
    """The others share what pushing one of them leaves."""
    rest = sum(s for j, s in enumerate(shares) if j != i)
    if not shares[i] or not rest:
        return pushed
    level = (alpha - shares[i] * pushed[i]) / rest
    return [pushed[j] if j == i or not shares[j] else level for j in range(len(pushed))]


def distinct(optima: Sequence[Optimum]) -> list[Optimum]:
    """The best of each group of optima that lie together, best first."""
    found: list[Optimum] = []
    for optimum in sorted(optima, key=lambda o: o.value):
        if all(max(abs(a - b) for a, b in zip(optimum.values, o.values, strict=True)) > SAME for o in found):
            found.append(optimum)
    return found
