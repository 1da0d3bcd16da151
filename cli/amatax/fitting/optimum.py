"""min f(a) over the ratios with every a in 0..1 and their weighted mean at alpha (AMA, Eq. 8), by sequential quadratic programming.

The feasible set is a box cut by one plane: scipy's SLSQP keeps to both exactly. What one descent learns of the curvature the next
one begins with, so that of the passes over all the data two or three are enough. The likelihood is not convex in the ratios, so
several starts are tried on a part of the data first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from amatax.errors import AmataxError

Function = Callable[[list[float]], tuple[float, list[float]]]  # values -> (f, gradient)
SLACK = 1e-3  # by which a limit may be missed, relative
PATIENCE = 6  # evaluations without a gain after which a descent ends
FLATTEST = 1e-2  # the least curvature that is believed, of the largest
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
        curvature: the Hessian of f as far as the descent tells it, positive definite (unknowns, unknowns); None if it did not move.
    """

    values: list[float]
    value: float
    steps: int
    start: list[float]
    path: list[float]
    curvature: np.ndarray | None = None


def minimise(
    function: Function,
    start: Sequence[float],
    shares: Sequence[float],
    alpha: float | None,
    *,
    tolerance: float,
    most: int,
    limit: tuple[Function, float] | None = None,
    curvature: np.ndarray | None = None,
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
        curvature: what is known of the Hessian of f; SLSQP itself begins with the identity.

    Raises:
        AmataxError: if no point within the limit was found.
    """
    from scipy import optimize

    weights = np.array(shares, dtype=float)
    begin = np.array(feasible(start, shares, alpha))
    axes = _unit_curvature(curvature) if curvature is not None else np.eye(len(begin))  # ratios = begin + axes @ y
    count = idle = 0
    path: list[float] = []
    seen: list[tuple[Any, Any]] = []
    best: tuple[float, Any] | None = None
    lowest = np.inf  # of g

    def ratios(y: Any) -> Any:
        return np.clip(begin + axes @ y, 0, 1)

    def evaluate(y: Any) -> tuple[float, Any]:
        nonlocal count, best, lowest, idle
        count += 1
        point = ratios(y)
        value, gradient = function([float(v) for v in point])
        seen.append((point, np.array(gradient)))
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
        return value, axes.T @ np.array(gradient)

    constraints: list[dict[str, Any]] = [
        {"type": "ineq", "fun": lambda y: begin + axes @ y, "jac": lambda y: axes},
        {"type": "ineq", "fun": lambda y: 1 - begin - axes @ y, "jac": lambda y: -axes},
    ]
    if alpha is not None and weights.any():
        mean = {"type": "eq", "fun": lambda y: weights @ (begin + axes @ y) - alpha, "jac": lambda y: weights @ axes}
        constraints.append(mean)
    if limit is not None:
        kept_by, bound = limit
        constraints.append(
            {
                "type": "ineq",
                "fun": lambda y: bound - kept_by([float(v) for v in ratios(y)])[0],
                "jac": lambda y: -np.array(kept_by([float(v) for v in ratios(y)])[1]) @ axes,
            }
        )
    options = {"ftol": tolerance, "maxiter": most}
    with suppress(_EnoughError):
        optimize.minimize(
            evaluate, np.zeros(len(begin)), jac=True, method="SLSQP", constraints=constraints, options=options
        )
    if best is None:
        message = f"no ratios with a divergence of at most {limit[1] if limit else 0:g} were found; the least seen is {lowest:.4g}"
        raise AmataxError(message, "allow more with --max-kl, or leave alpha free")
    learnt = _learn(curvature, seen)
    return Optimum([float(v) for v in best[1]], float(best[0]), count, [float(v) for v in begin], path, learnt)


def _learn(curvature: np.ndarray | None, seen: Sequence[tuple[Any, Any]]) -> np.ndarray | None:
    """The Hessian by BFGS from a descent's points and gradients, begun with what was known (Nocedal and Wright, 6.19)."""
    for (here, slope), (there, other) in pairwise(seen):
        step, bend = there - here, other - slope
        if not step.any() or step @ bend <= 1e-3 * np.linalg.norm(step) * np.linalg.norm(bend):
            continue  # bent downwards, or rounding
        if curvature is None:
            curvature = np.eye(len(step)) * (bend @ bend) / (step @ bend)
        along = curvature @ step
        curvature = curvature - np.outer(along, along) / (step @ along) + np.outer(bend, bend) / (step @ bend)
    return curvature


def _unit_curvature(curvature: np.ndarray) -> np.ndarray:
    """Axes along which the Hessian is the identity (unknowns, unknowns)."""
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    return vectors / np.sqrt(np.maximum(values, FLATTEST * values.max()))


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
