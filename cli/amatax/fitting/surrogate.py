"""The minimum of a dear function by way of a cheap one, which is made to agree with it where the dear one was asked last.

The cheap one gets the linear term by which its gradient differs there: an additive correction of first order, as surrogates of variable
fidelity are managed (Alexandrov, Lewis, Gumbert, Green and Newman, Journal of Aircraft 38, 2001). How it bends it knows by itself, until
the dear one's gradients at two points say otherwise: then it gets a quadratic term as well, by symmetric updates of rank one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amatax.fitting.optimum import AT_BOUND, SHORTEST, Function, Optimum, falls, feasible, first_bend, minimise

NEARLY = 20  # times the tolerance: a gain that is foreseen to be less is taken without another gradient
KEPT = 0.9  # share of the foreseen gain that such a step must bring, and as much more at most: it speaks for one direction alone
KEPT_ON_A_LINE = 0.6  # where there is no other: a quarter of the gain is left then
ON_A_LINE = 1000  # instead of NEARLY where one direction is free: there the value tells how much is left
STEEPEST = 0.01  # cosine of the angle between a step and what the gradients miss there, at least
LEFT = 5  # times the tolerance, which may be left then
ROUNDS = 10


def minimise_by(
    cheap: Function,
    function: Function,
    value: Function,
    start: Sequence[float],
    shares: Sequence[float],
    alpha: float | None,
    *,
    tolerance: float,
    most: int,
    curvature: np.ndarray | None = None,
) -> Optimum:
    """Descend from one start; ends about LEFT tolerances from the minimum at most, if the functions are parabolas there, alike in the
    directions that no step took, and the last step meets no bound that the dear one would leave; nearer if the cheap one is right.

    Args:
        cheap: a function like f, and its gradient.
        function: f and its gradient.
        value: f, its gradient left out (any number): cheaper.
        start: any point; it is moved onto the feasible set.
        shares, alpha: as for `minimise`.
        tolerance: stops when no more than this is foreseen to be gained.
        most: iterations of a descent.
        curvature: what is known of the Hessian.
    """
    point, points, path = feasible(start, shares, alpha), [], []
    tilts, bend, flat = [], np.zeros((len(point), len(point))), 0.0
    for _ in range(ROUNDS):
        here, slope = function(point)
        path.append(here)
        points.append(point)
        flat = flat or first_bend(slope, shares, alpha)
        if len(path) > 1 and here > path[-2]:  # the cheap one misled
            break
        there, own = cheap(point)
        tilts.append(np.array(slope) - own)
        if len(points) > 1:
            bend = _secant(bend, np.subtract(point, points[-2]), tilts[-1] - tilts[-2])
        corrected = _corrected(cheap, tilts[-1], bend, point)
        step = minimise(corrected, point, shares, alpha, tolerance=tolerance, most=most, curvature=curvature)
        curvature, foreseen = step.curvature, there - step.value
        if foreseen < tolerance:
            if curvature is None and falls(point, slope, shares, alpha, flat) > tolerance:
                break  # nothing was learnt: not the end
            return Optimum(point, here, len(points), path, curvature)
        line = _one_direction(point, step.values, shares, alpha)
        if foreseen < (ON_A_LINE if line else NEARLY) * tolerance:
            reached, _ = value(step.values)
            kept = (here - reached) / foreseen
            least = KEPT_ON_A_LINE if line else KEPT
            if least < kept < 2 - least:
                path.append(reached)
                if not line or _left(kept) * foreseen < LEFT * tolerance:
                    return Optimum(step.values, reached, len(points), path, curvature)
                nearer = [a + (b - a) / _bend(kept) for a, b in zip(point, step.values, strict=True)]
                nearer = feasible(nearer, shares, alpha)
                reached, _ = value(nearer)
                if reached <= path[-1]:
                    return Optimum(nearer, reached, len(points), [*path, reached], curvature)
                path.pop()
        point = step.values
    best = points[int(np.argmin(path))]
    rest = minimise(function, best, shares, alpha, tolerance=tolerance, most=most, curvature=curvature)
    return Optimum(rest.values, rest.value, len(points) + rest.steps, path + rest.path, rest.curvature)


def _one_direction(one: Sequence[float], other: Sequence[float], shares: Sequence[float], alpha: float | None) -> bool:
    """All but one direction end at the same bounds."""
    shares_of_free = [
        share
        for a, b, share in zip(one, other, shares, strict=True)
        if max(min(a, 1 - a), min(b, 1 - b)) > AT_BOUND or abs(a - b) > AT_BOUND
    ]
    return len(shares_of_free) - (alpha is not None and any(shares_of_free)) == 1  # the mean takes one away


def _bend(kept: float) -> float:
    """How much the dear one bends along a line, of what the cheap one does, if both are parabolas with one slope at its start."""
    return 2 - kept


def _left(kept: float) -> float:
    """Of the gain that was foreseen along such a line: what is still to be gained; 1 / bend is all of it."""
    return 1 / _bend(kept) - kept


def _secant(bend: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The matrix that takes the step to the change, as near to `bend` (SR1: Nocedal and Wright, 6.24), where rounding does not decide it."""
    miss = change - bend @ step
    size = np.linalg.norm(step)
    if size < SHORTEST or abs(miss @ step) <= STEEPEST * np.linalg.norm(miss) * size:
        return bend
    return bend + np.outer(miss, miss) / (miss @ step)


def _corrected(function: Function, tilt: np.ndarray, bend: np.ndarray, about: Sequence[float]) -> Function:
    """f(a) + tilt . s + s . bend s / 2, with s = a - about."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        value, slope = function(values)
        step = np.subtract(values, about)
        lift = float(tilt @ step + step @ bend @ step / 2)
        return value + lift, (np.array(slope) + tilt + bend @ step).tolist()

    return evaluate
