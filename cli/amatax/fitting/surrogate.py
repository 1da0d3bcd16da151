"""The minimum of a dear function by way of a cheap one, which is made to agree with it where the dear one was asked last.

The cheap one gets the linear term by which its gradient differs there: an additive correction of first order, as surrogates of variable
fidelity are managed (Alexandrov, Lewis, Gumbert, Green and Newman, Journal of Aircraft 38, 2001). How it bends it knows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amatax.fitting.optimum import Function, Optimum, falls, feasible, minimise

NEARLY = 20  # times the tolerance: a gain that is foreseen to be less is taken without another gradient
KEPT = 0.6  # share of the foreseen gain that such a step must bring, and as much more at most: a quarter of it is left then
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
    """Descend from one start; ends some tolerances from the minimum (NEARLY x KEPT tell how many), nearer if the cheap one is right.

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
    for _ in range(ROUNDS):
        here, slope = function(point)
        path.append(here)
        points.append(point)
        if len(path) > 1 and here > path[-2]:  # the cheap one misled
            break
        there, own = cheap(point)
        tilted = _tilted(cheap, [a - b for a, b in zip(slope, own, strict=True)], point)
        step = minimise(tilted, point, shares, alpha, tolerance=tolerance, most=most, curvature=curvature)
        curvature, foreseen = step.curvature, there - step.value
        if foreseen < tolerance:
            if curvature is None and falls(point, slope, shares, alpha) > tolerance:  # nothing was learnt: not the end
                break
            return Optimum(point, here, len(points), path, curvature)
        if foreseen < NEARLY * tolerance:
            reached, _ = value(step.values)
            if KEPT * foreseen < here - reached < (2 - KEPT) * foreseen:
                return Optimum(step.values, reached, len(points), [*path, reached], curvature)
        point = step.values
    best = points[int(np.argmin(path))]
    rest = minimise(function, best, shares, alpha, tolerance=tolerance, most=most, curvature=curvature)
    return Optimum(rest.values, rest.value, len(points) + rest.steps, path + rest.path, rest.curvature)


def _tilted(function: Function, tilt: list[float], about: Sequence[float]) -> Function:
    """f(a) + tilt . (a - about)."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        value, slope = function(values)
        lift = sum(t * (v - a) for t, v, a in zip(tilt, values, about, strict=True))
        return value + lift, [s + t for s, t in zip(slope, tilt, strict=True)]

    return evaluate
