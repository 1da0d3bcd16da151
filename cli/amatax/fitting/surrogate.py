"""The minimum of a dear function by way of a cheap one, which is made to agree with it where the dear one was asked last.

The cheap one gets the linear term by which its gradient differs there: an additive correction of first order, as surrogates of variable
fidelity are managed (Alexandrov, Lewis, Gumbert, Green and Newman, Journal of Aircraft 38, 2001). How it bends it knows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amatax.fitting.optimum import Function, Optimum, feasible, minimise

NEARLY = 30  # times the tolerance: a gain that is foreseen to be less is taken without another gradient
KEPT = 0.5  # share of the foreseen gain that such a step must bring
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
    """Descend from one start.

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
    begin = feasible(start, shares, alpha)
    point, path, points = begin, [], []
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
            return Optimum(point, here, len(points), begin, path, points, curvature)
        if foreseen < NEARLY * tolerance:
            reached, _ = value(step.values)
            if reached < here - KEPT * foreseen:
                return Optimum(step.values, reached, len(points), begin, [*path, reached], points, curvature)
        point = step.values
    best = points[int(np.argmin(path))]
    rest = minimise(function, best, shares, alpha, tolerance=tolerance, most=most, curvature=curvature)
    return Optimum(
        rest.values,
        rest.value,
        len(points) + rest.steps,
        begin,
        path + rest.path,
        points + rest.points,
        rest.curvature,
    )


def _tilted(function: Function, tilt: list[float], about: Sequence[float]) -> Function:
    """f(a) + tilt . (a - about)."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        value, slope = function(values)
        lift = sum(t * (v - a) for t, v, a in zip(tilt, values, about, strict=True))
        return value + lift, [s + t for s, t in zip(slope, tilt, strict=True)]

    return evaluate
