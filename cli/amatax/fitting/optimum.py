"""min f(a) over the ratios with every a in 0..1 and their weighted mean at alpha (AMA, Eq. 8), by sequential quadratic programming.

The feasible set is a box cut by one plane: scipy's SLSQP keeps to both exactly. What one descent learns of the curvature the next
one begins with. The likelihood is not convex in the ratios, so several starts are tried on a part of the data first (search.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from amatax.errors import AmataxError

Function = Callable[[list[float]], tuple[float, list[float]]]  # values -> (f, gradient)
SLACK = 1e-3  # by which a limit may be missed, relative
PATIENCE = 6  # evaluations without a gain after which a descent ends
ALIKE = 2e-4  # points that differ by less are one: at a bound SLSQP goes to and fro between such
VISITS = 4  # evaluations outside a limit that lie together, after which a descent ends: in 16 bits a limit is rough
SHORTEST = 1e-3  # step that tells a curvature: the gradients have the rounding of float32
FLATTEST = 1e-2  # the least curvature that is believed, of the largest
FIRST_STEP = 0.02  # length of a descent's first step, at least, where nothing is known of the curvature
AT_BOUND = 1e-6  # nearer to 0 or 1 than this a ratio lies there
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
        path: f at each iteration.
        curvature: the Hessian of f as far as the descent tells it, positive definite (unknowns, unknowns); None if it did not move.
    """

    values: list[float]
    value: float
    steps: int
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
        curvature: what is known of the Hessian of f, instead of the identity with which SLSQP begins. With a limit, whose
            curvature counts as much, it is not used.

    Raises:
        AmataxError: if no point within the limit was found.
    """
    weights = np.array(shares, dtype=float)
    begin = np.array(feasible(start, shares, alpha))
    trace = _Trace(function, weights, alpha, tolerance, limit)
    _slsqp(trace, begin, curvature if limit is None else None, most)
    if trace.best is None and limit is not None and alpha is None:  # stuck outside, where rounding is rough
        _slsqp(trace, _towards_none(trace, limit), None, most)
    if trace.best is None:
        message = f"no ratios with a divergence of at most {limit[1] if limit else 0:g} were found; the least seen is {trace.lowest:.4g}"
        raise AmataxError(message, "allow more with --max-kl, or leave alpha free")
    value, point, slope = trace.best
    if curvature is not None and limit is None:
        bend = first_bend(trace.seen[0][2], shares, alpha)
        if falls(point, slope, shares, alpha, bend) > tolerance:  # what was known misled it, and ended it too early
            _slsqp(trace, point, None, most)
            value, point, _ = trace.best
    path = [seen for seen, _, _ in trace.seen]
    learnt = _learn(curvature, trace.seen)
    return Optimum([float(v) for v in point], value, len(path), path, learnt)


@dataclass
class _Trace:
    """What is minimised, and where a descent has been: (f, ratios, gradient)."""

    function: Function
    weights: np.ndarray
    alpha: float | None
    tolerance: float
    limit: tuple[Function, float] | None
    seen: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)
    best: tuple[float, np.ndarray, np.ndarray] | None = None  # of those within the limits
    idle: int = 0  # evaluations since the last gain
    lowest: float = np.inf  # of what is limited

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.function([float(v) for v in point])
        here = (value, point, np.array(slope))
        visits = sum(bool(np.abs(point - other).max() < ALIKE) for _, other, _ in self.seen)
        self.seen.append(here)
        within = self.alpha is None or not self.weights.any() or abs(self.weights @ point - self.alpha) < 1e-9
        if self.limit is not None:
            kept = self.limit[0]([float(v) for v in point])[0]
            self.lowest = min(self.lowest, kept)
            within = within and kept <= self.limit[1] * (1 + SLACK)
        gained = within and (self.best is None or value < self.best[0] - self.tolerance)
        if within or self.limit is None:  # SLSQP comes to a limit from outside: that says nothing of the end
            self.idle = 0 if gained else self.idle + 1
        if within and (self.best is None or value < self.best[0]):
            self.best = here
        fro = self.limit is not None and visits > (1 if within else VISITS)
        if (self.best is not None and self.idle >= PATIENCE) or fro:  # rounding keeps SLSQP's own test from ending it
            raise _EnoughError
        return value, here[2]


def _towards_none(trace: _Trace, limit: tuple[Function, float]) -> np.ndarray:
    """From where a descent was last on the way to no change at all, until the limit is kept; it grows with the square of the change."""
    point, (function, bound) = trace.seen[-1][1], limit
    for _ in range(PATIENCE):
        kept = function([float(v) for v in point])[0]
        if kept <= bound:
            break
        point = point * math.sqrt(bound * (1 - SLACK) / kept)
    return point


def _slsqp(trace: _Trace, begin: np.ndarray, curvature: np.ndarray | None, most: int) -> None:
    """One run, along axes in which the Hessian is the identity as far as it is known: SLSQP takes it for that at first."""
    from scipy import optimize

    weights, alpha, limit = trace.weights, trace.alpha, trace.limit
    trace.idle = 0
    first: tuple[float, np.ndarray] | None = None
    if curvature is not None:
        axes = _unit_curvature(curvature)
    else:
        first = trace.evaluate(begin)
        axes = np.eye(len(begin)) / np.sqrt(first_bend(first[1], weights, alpha))

    def ratios(y: Any) -> Any:
        return np.clip(begin + axes @ y, 0, 1)

    def evaluate(y: Any) -> tuple[float, Any]:
        value, slope = first if first is not None and not y.any() else trace.evaluate(ratios(y))
        return value, axes.T @ slope

    constraints: list[dict[str, Any]] = [
        {"type": "ineq", "fun": lambda y: begin + axes @ y, "jac": lambda y: axes},
        {"type": "ineq", "fun": lambda y: 1 - begin - axes @ y, "jac": lambda y: -axes},
    ]
    if alpha is not None and weights.any():
        mean = {"type": "eq", "fun": lambda y: weights @ (begin + axes @ y) - alpha, "jac": lambda y: weights @ axes}
        constraints.append(mean)
    if limit is not None:
        kept, bound = limit[0], limit[1] * (1 - SLACK / 2)  # a little inside, where rounding cannot lead out
        most_kept = {
            "type": "ineq",
            "fun": lambda y: 1 - kept([float(v) for v in ratios(y)])[0] / bound,
            "jac": lambda y: -np.array(kept([float(v) for v in ratios(y)])[1]) @ axes / bound,
        }
        constraints.append(most_kept)
    options = {"ftol": trace.tolerance, "maxiter": most}
    with suppress(_EnoughError):
        optimize.minimize(
            evaluate, np.zeros(len(begin)), jac=True, method="SLSQP", constraints=constraints, options=options
        )


def _learn(curvature: np.ndarray | None, seen: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """The Hessian by BFGS from a descent's points and gradients, begun with what was known (Nocedal and Wright, 6.19)."""
    for (_, here, slope), (_, there, other) in pairwise(seen):
        step, bend = there - here, other - slope
        if np.linalg.norm(step) < SHORTEST or step @ bend <= 1e-3 * np.linalg.norm(step) * np.linalg.norm(bend):
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
            if all(apart(point, other) > 1e-9 for other in points):
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
        if all(apart(optimum.values, o.values) > SAME for o in found):
            found.append(optimum)
    return found


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """By how much two points differ in one unknown, at most."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def first_bend(slope: Sequence[float] | np.ndarray, shares: Sequence[float] | np.ndarray, alpha: float | None) -> float:
    """A curvature for a first step down the gradient: 1, or less for a weak signal, whose step would come to nothing."""
    along, normal = np.array(slope, dtype=float), np.array(shares, dtype=float)
    if alpha is not None and normal.any():
        along = along - normal * (normal @ along) / (normal @ normal)
    size = float(np.linalg.norm(along))
    return min(1.0, size / FIRST_STEP) or 1.0


def falls(
    point: Sequence[float] | np.ndarray,
    slope: Sequence[float] | np.ndarray,
    shares: Sequence[float],
    alpha: float | None,
    bend: float = 1.0,
) -> float:
    """How much a feasible step down the gradient gains along the tangent; by so much more as the function bends less than 1."""
    step = np.array(feasible(list(np.array(point) - np.array(slope) / bend), shares, alpha)) - np.array(point)
    return -float(np.array(slope) @ step)
