"""Where the optimum of a fit is: a look around with a few samples, since the likelihood is not convex, then down from the best."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from amatax.errors import AmataxError
from amatax.fitting.optimum import Function, Optimum, apart, corners, distinct, feasible, minimise
from amatax.fitting.paper import penalty_weights, regularised
from amatax.fitting.problem import Keep, Problem
from amatax.fitting.surrogate import minimise_by

FEW, MOST, SHARE = 32, 512, 10  # samples that the look sees: at least, at most, and between them one in so many
FEW_KEPT = 128  # at least, of those that are kept: most of a divergence is in few samples
NEAR = 0.1  # means that are no farther apart share an optimum, mostly
SAME = 1e-9
STARTS, STARTS_AFTER = 3, 2  # rough descents, of a first mean and of one far from the last
JOINED = (
    0.1  # a rough descent that comes so near to an optimum that was seen, on its way down to it, ends there as well
)
ROUGH = 1e-4  # nats per token: where a rough descent stops, or
ROUGH_SHARE = 5e-3  # at this share of what the ratios can change, if that is less
FINE = 1e-4  # where the fit stops: this share of what the ratios can change
FINEST = 1e-6  # and never finer, in nats per token: float32 tells no less than 1e-7 apart
ROUGH_STEPS, FINE_STEPS = 20, 60


Goal = Callable[..., Function]  # (part, kept part, gradient=True) -> what is minimised


class _JoinedError(Exception):
    """Ends a rough descent on its way into an optimum that was seen before."""


def search(
    problem: Problem, level: float, keep: Keep | None, regulariser: float, begin: Optimum | None, seed: int
) -> tuple[Optimum, int]:
    """The constrained optimum of the fitted part, and how many optima the look saw.

    Args:
        problem: what is asked of.
        level: of the uniform average that is one of the starts.
        keep: what must stay of SFT.
        regulariser: strength of C.5, nats per token.
        begin: the end at another mean: it is one of the starts, and of a near mean (or the best of the other points) the only one.
        seed: of the few samples.
    """
    shares, alpha = problem.shares, problem.alpha
    uniform = problem.written(feasible(problem.variables.uniform(level), shares, alpha))
    goal = _goal(problem, keep, regulariser)
    full = goal("fit", "keep")
    bound = keep.most if keep is not None else None
    limit = (problem.objective("keep"), bound) if bound is not None else None
    if alpha is not None and sum(1 for share in shares if share) + (0 in shares) < 2:  # one block at a held mean
        problem.watcher.say("fitting")
        return minimise(full, uniform, shares, alpha, tolerance=FINEST, most=1, limit=limit), 0

    problem.watcher.say("a first look around")
    for model in (0.0, 1.0, None):  # the report needs these; the few samples are chosen to agree with them
        problem.measured("fit", uniform, end=model)
    few, few_kept = _few(problem, "fit", FEW, seed), "keep"
    if keep is not None:
        problem.measured("keep", uniform)
        few_kept = _few(problem, "keep", FEW_KEPT, seed)
    optima, spread = _look_around(problem, goal, (few, few_kept), uniform, level, bound, begin)

    problem.watcher.say("fitting")
    best = optima[0] if optima else begin
    start, known = (best.values, best.curvature) if best is not None else (uniform, None)
    tolerance = max(FINE * spread, FINEST)
    if limit is not None:
        return minimise(full, start, shares, alpha, tolerance=tolerance, most=FINE_STEPS, limit=limit), len(optima)
    value, cheap = goal("fit", "keep", gradient=False), goal(few, few_kept)
    end = minimise_by(cheap, full, value, start, shares, alpha, tolerance=tolerance, most=FINE_STEPS, curvature=known)
    return end, len(optima)


def _few(problem: Problem, part: str, least: int, seed: int) -> str:
    """The name of a part of few samples that stand for all of another."""
    return problem.few(part, min(max(least, len(problem.parts[part]) // SHARE), MOST), seed)


def _look_around(
    problem: Problem,
    goal: Goal,
    parts: tuple[str, str],
    uniform: list[float],
    level: float,
    bound: float | None,
    begin: Optimum | None,
) -> tuple[list[Optimum], float]:
    """Distinct optima of the few samples, best first, and how far apart points can be, nats per token."""
    shares, alpha = problem.shares, problem.alpha
    value, limit = goal(*parts, gradient=False), None
    if bound is not None:
        limit = (problem.objective(parts[1]), bound)

    def standing(point: list[float]) -> tuple[float, float]:
        """How far beyond the bound, then what is minimised."""
        beyond = max(0.0, problem.measured(parts[1], point).mean - bound) if bound is not None else 0.0
        return beyond, value(point)[0]

    looks = sorted((standing(point), point) for point in corners(len(shares), shares, level))
    heights = [height for (_, height), _ in looks]
    spread = max(heights) - min(heights)
    rough = min(ROUGH, max(ROUGH_SHARE * spread, FINEST))
    starts = [uniform, *(point for _, point in looks if apart(point, uniform) > SAME)][:STARTS]
    if begin is not None:
        old = feasible(begin.values, shares, alpha)
        starts = [old, *(point for _, point in looks if apart(point, old) > SAME)][:STARTS_AFTER]
        if alpha is not None and abs(problem.mean_ratio(begin.values) - alpha) <= NEAR + SAME:
            starts = [min((standing(old), old), looks[0])[1]]  # whose own look saw the other optima
    found: list[Optimum] = []
    known = begin.curvature if begin is not None else None
    for start in starts:
        with suppress(AmataxError, _JoinedError):  # AmataxError: nothing within the bound was found from there
            descent = _until_joined(goal(*parts), found, JOINED * min(1, 2 * level, 2 * (1 - level)))
            found.append(
                minimise(descent, start, shares, alpha, tolerance=rough, most=ROUGH_STEPS, limit=limit, curvature=known)
            )
            known = found[-1].curvature
    return distinct(found), spread


def _until_joined(function: Function, found: list[Optimum], reach: float) -> Function:
    """The function, until a descent comes within reach of one of the optima found so far (the list grows) and leads down to it."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        value, slope = function(values)
        for optimum in found:
            leads = sum(s * (there - here) for s, there, here in zip(slope, optimum.values, values, strict=True)) < 0
            if leads and value >= optimum.value and apart(values, optimum.values) <= reach:
                raise _JoinedError
        return value, slope

    return evaluate


def _goal(problem: Problem, keep: Keep | None, regulariser: float) -> Goal:
    """(part, kept part) -> what is minimised."""
    alpha, weight = problem.alpha, keep.weight if keep else None
    weights = penalty_weights(problem, regulariser)

    def goal(part: str, kept: str, *, gradient: bool = True) -> Function:
        function = problem.objective(part, kept, weight, gradient=gradient)
        return regularised(function, weights, alpha) if regulariser and alpha is not None else function

    return goal
