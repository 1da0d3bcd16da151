"""How sure the ratios of a fit are, by what it minimised: the NLL alone, with a divergence or a penalty added, or within a bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from amatax.fitting.intervals import directions, ratio_covariance
from amatax.fitting.likelihood import Measured
from amatax.fitting.optimum import AT_BOUND, SLACK
from amatax.fitting.paper import CORNER, penalty_weights
from amatax.fitting.problem import Keep, Problem

AT_LIMIT = 5 * SLACK  # a divergence that is no farther below its bound, relative, lies at it
AT_LIMIT_ROUGHLY = 0.05  # in 16 bits, where rounding ends a descent before it is there
AT_CORNER = 5 * CORNER  # a ratio that is no farther from the mean lies in the corner of the penalty's |a - alpha|


def holders(problem: Problem, values: Sequence[float], regulariser: float) -> list[str]:
    """What keeps each ratio from moving: "bound" (0 or 1), "regulariser" (the corner of its |a - alpha|), or "" for one that can."""
    found = []
    for value, weight in zip(values, penalty_weights(problem, regulariser), strict=True):
        if not AT_BOUND < value < 1 - AT_BOUND:
            found.append("bound")
        else:
            corner = weight > 0 and problem.alpha is not None and abs(value - problem.alpha) <= AT_CORNER
            found.append("regulariser" if corner else "")
    return found


def fit_covariance(
    problem: Problem, values: Sequence[float], keep: Keep | None, held_by: Sequence[str]
) -> np.ndarray | None:
    """How the ratios vary with the prompts that are drawn, of the data and of what is kept: see `ratio_covariance`.

    Args:
        problem: what the fit asked of.
        values: the optimum.
        keep: what must stay of SFT.
        held_by: `holders`.
    """
    held = problem.alpha is not None and any(problem.shares)
    basis = directions([not holder for holder in held_by], problem.shares, held=held)
    weight, limited = keep.weight if keep is not None else None, None
    if keep is not None and keep.most is not None:
        limited = problem.measured("keep", values, gradient=True)
        weight = _price(problem.measured("fit", values, gradient=True), limited, basis)
        if limited.mean < keep.most * (1 - (AT_LIMIT if problem.precise else AT_LIMIT_ROUGHLY)) or weight <= 0:
            weight, limited = None, None  # the bound is not what ended it
    parts = ["fit"] if weight is None else ["fit", "keep"]

    def measure(point: Sequence[float], gradient: bool) -> Measured:
        goal = problem.measured("fit", point, gradient=gradient)
        return goal if weight is None else _sum(goal, problem.measured("keep", point, gradient=gradient), weight)

    asked = [{tuple(point): found for point, found in problem.asked(part)} for part in parts]
    return ratio_covariance(
        measure,
        values,
        basis,
        [problem.prompts(part) for part in parts],
        known=[
            (point, measure(point, all(one[point].gradient is not None for one in asked)))
            for point in asked[0]
            if all(point in one for one in asked)
        ],
        limited=limited,
        precise=problem.precise,
    )


def _price(goal: Measured, limited: Measured, basis: np.ndarray) -> float:
    """Lagrange's multiplier: by how much the goal would fall for each nat that the limit rose."""
    slope, normal = basis.T @ np.array(goal.slope()), basis.T @ np.array(limited.slope())
    return -float(slope @ normal / (normal @ normal)) if normal.any() else 0.0


def _sum(goal: Measured, other: Measured, weight: float) -> Measured:
    """The mean of one and `weight` times that of the other as the mean of one pass over the samples of both."""
    sums, tokens = [], []
    for found, times in ((goal, 1.0), (other, weight)):
        whole = found.tokens.sum()
        sums.append(found.sums * (times / whole))
        tokens.append(found.tokens / (2 * whole))
    slope = None
    if goal.gradient is not None and other.gradient is not None:
        slope = goal.gradient + weight * other.gradient
    return Measured(torch.cat(sums), torch.cat(tokens), slope)
