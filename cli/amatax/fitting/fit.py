"""Block ratios by maximum likelihood on responses of the RLHF model, their mean held at alpha (AMA, arXiv 2309.06256, Eq. 8)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from amatax.errors import AmataxError
from amatax.fitting.evidence import Interval, paired_bootstrap, ratio_intervals, verdict
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Optimum, corners, distinct, feasible, minimise
from amatax.fitting.paper import Preset, middle_weights, one_epoch, regularised
from amatax.fitting.passes import Passes
from amatax.fitting.problem import Problem
from amatax.fitting.result import Fit, Part, Tradeoff
from amatax.fitting.samples import Sample
from amatax.fitting.sampling import Watching
from amatax.fitting.variables import PLACES, Variables, exact_mean

FIRST_LOOK = 32  # samples that the first look and the rough descents see
STARTS = 3  # rough descents
SURE = 2.0  # standard errors
ROUGH = 1e-4  # nats per token: where a rough descent stops
FINE = 1e-4  # where the fit stops: this share of what the ratios can change
FINEST = 1e-6  # and never finer, in nats per token: float32 tells no less than 1e-7 apart
ROUGH_STEPS, FINE_STEPS = 20, 60


@dataclass(frozen=True)
class Keep:
    """What a tax-aware fit keeps of SFT.

    Attributes:
        train, held: samples whose responses SFT gives, or should.
        most: bound of the mean KL(SFT || merged) on `train`, nats per response token.
        weight: or: the KL is added to the NLL, times this.
    """

    train: Sequence[Sample]
    held: Sequence[Sample]
    most: float | None = None
    weight: float | None = None


def fit(
    merged: MergedModel,
    variables: Variables,
    train: Sequence[Sample],
    held: Sequence[Sample],
    alpha: float | None,
    journal: Passes,
    *,
    watcher: Watching,
    keep: Keep | None = None,
    seed: int = 0,
    begin: Optimum | None = None,
    preset: Preset | None = None,
    regulariser: float = 0.0,
    batch_tokens: int = 4096,
) -> Fit:
    """Find the ratios.

    Args:
        merged: both models, with one unknown for each of the variables.
        variables: the unknowns and how they enter the mean.
        train: the samples that are fitted.
        held: those that never are; may be none.
        alpha: the mean that is held; None, with `keep`: it is found.
        journal: of earlier passes.
        watcher: told the samples of a pass, those that are done, and what is going on.
        keep: what must stay of SFT (beyond the paper).
        seed: of the first look's samples and of the bootstrap.
        begin: the descent at a neighbouring alpha: where it ended is one of the starts.
        preset: the paper's own way, at a held mean and without `keep`.
        regulariser: strength of C.5, nats per token.
        batch_tokens: tokens of a batch.
    """
    parts = {"fit": train, "held": held, "look": _few(train, seed)}
    if keep is not None:
        parts |= {"keep": keep.train, "keep held": keep.held, "keep look": _few(keep.train, seed)}
    problem = Problem(merged, variables, parts, journal, batch_tokens, watcher, alpha)
    merged.hold_mean(problem.shares if alpha is not None else None)

    bound = keep.most if keep is not None and alpha is None else None
    level = alpha if alpha is not None else _level_of(problem, bound) if bound is not None else 0.5
    uniform = feasible(variables.uniform(level), problem.shares, alpha)
    optima: list[Optimum] = []
    spread = 0.0
    if preset is None:
        optima, spread = _look_around(problem, level, alpha, keep, begin)
    watcher.say("fitting")
    if preset is not None and alpha is not None:
        best = one_epoch(problem, alpha, preset, seed)
    else:
        best = _descend(
            problem, optima[0] if optima else begin, uniform, alpha, keep, regulariser, max(FINE * spread, FINEST)
        )
    if alpha is None:
        alpha = round(problem.mean_ratio(best.values), PLACES)
    values = exact_mean(best.values, variables.shares, alpha)
    if bound is not None:  # compared with the uniform average that costs as much
        uniform = variables.uniform(_level_of(problem, problem.measured("keep", values).mean))
    elif keep is not None:
        uniform = variables.uniform(alpha)
    if (
        not (keep or preset or regulariser)
        and problem.measured("fit", values).mean > problem.measured("fit", uniform).mean
    ):
        values = exact_mean(uniform, variables.shares, alpha)

    watcher.say("how sure it is")
    intervals: list[Interval | None] = [None] * len(values)
    if keep is None:  # of a bounded fit the bound decides, not the likelihood's curvature
        intervals = ratio_intervals(
            lambda point: problem.measured("fit", point, gradient=True),
            values,
            problem.shares,
            problem.prompts("fit"),
            held=any(problem.shares),
            known=[exact_mean(point, variables.shares, alpha) for point in best.points],
        )
    held_out = _part(problem, "held", values, uniform, seed) if held else None
    return Fit(
        alpha=alpha,
        names=variables.names,
        values=values,
        intervals=intervals,
        ratios=variables.ratios(values),
        fitted=_part(problem, "fit", values, uniform, seed),
        held_out=held_out,
        verdict=verdict(held_out.gain, len(set(problem.prompts("held")))) if held_out else "not tested",
        optima=len(optima),
        descent=best,
        found_alpha=bound is not None,
        tradeoff=_tradeoff(problem, values, uniform, alpha) if keep is not None else [],
        bound=keep.most if keep else None,
        weight=keep.weight if keep else None,
        passes=problem.made,
    )


def _descend(
    problem: Problem,
    near: Optimum | None,
    uniform: Sequence[float],
    alpha: float | None,
    keep: Keep | None,
    regulariser: float,
    tolerance: float,
) -> Optimum:
    """The constrained optimum of the fitted part, from a near one if there is one."""
    objective = problem.objective("fit", "keep", keep.weight if keep else None)
    if regulariser and alpha is not None:
        width = 2 if problem.variables.groups else 1  # unknowns of a block
        blocks = sum(1 for share in problem.shares if share) // width
        weights = [w for w in middle_weights(blocks, regulariser) for _ in range(width)]
        weights += [0.0] * (len(problem.shares) - len(weights))
        objective = regularised(objective, weights, alpha)
    return minimise(
        objective,
        near.values if near else uniform,
        problem.shares,
        alpha,
        curvature=near.curvature if near else None,
        tolerance=tolerance,
        most=FINE_STEPS,
        limit=(problem.objective("keep"), keep.most) if keep is not None and keep.most is not None else None,
    )


def _look_around(
    problem: Problem, level: float, alpha: float | None, keep: Keep | None, begin: Optimum | None
) -> tuple[list[Optimum], float]:
    """Distinct optima of a few samples, best first: the likelihood is not convex in the ratios. And how far apart points can be, nats.

    Args:
        problem: what is asked of.
        level: of the uniform average that is one of the starts.
        alpha, keep: as for `fit`.
        begin: a neighbour's end: then it and the best of the other points are the starts.
    """
    shares = problem.shares
    if alpha is not None and sum(1 for share in shares if share) + (0 in shares) < 2:
        return [], 0.0  # one block at a held mean cannot move
    problem.watcher.say("a first look around")

    def standing(point: list[float]) -> tuple[float, float]:
        """How far beyond the bound, then what is minimised."""
        value = problem.measured("look", point).mean
        kl = problem.measured("keep look", point).mean if keep is not None else 0.0
        beyond = max(0.0, kl - keep.most) if keep is not None and keep.most is not None else 0.0
        return beyond, value + (keep.weight or 0.0) * kl if keep is not None else value

    uniform = feasible(problem.variables.uniform(level), shares, alpha)
    looks = sorted((standing(point), point) for point in corners(len(shares), shares, level))
    if begin is None:
        starts = [uniform, *(point for _, point in looks if point != uniform)][:STARTS]
    else:
        starts = [begin.values, looks[0][1]]
    look = problem.objective("look", "keep look", keep.weight if keep else None)
    limit = (problem.objective("keep look"), keep.most) if keep is not None and keep.most is not None else None
    found: list[Optimum] = []
    for start in starts:
        known = found[-1].curvature if found else begin.curvature if begin is not None else None
        with suppress(AmataxError):  # nothing within the bound was found from there
            found.append(
                minimise(look, start, shares, alpha, tolerance=ROUGH, most=ROUGH_STEPS, limit=limit, curvature=known)
            )
    optima = distinct(found)
    if begin is not None and optima and keep is None and optima[0].start == feasible(begin.values, shares, alpha):
        optima[0] = _trusted(problem, optima[0])
    values = [value for (_, value), _ in looks]
    return optima, max(values) - min(values)


def _trusted(problem: Problem, optimum: Optimum) -> Optimum:
    """Where the descent began, a neighbour's end that all the data told, if the few samples do not tell for sure that its end is better."""
    ends = (
        exact_mean(point, problem.variables.shares, problem.alpha or 0.0) for point in (optimum.start, optimum.values)
    )
    before, after = (problem.measured("look", point).sums for point in ends)
    gains = before - after
    if float(gains.mean()) > SURE * float(gains.std()) / math.sqrt(len(gains)):
        return optimum
    return replace(optimum, values=optimum.start)


def _few(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """For the first look."""
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), min(FIRST_LOOK, len(samples))))]


def _level_of(problem: Problem, divergence: float) -> float:
    """Where the uniform average has this KL(SFT || merged) on the kept prompts, to a thousandth; 1 if it never has so much."""
    from scipy import optimize

    def beyond(level: float) -> float:
        """The divergence grows with the square of the level, from none at SFT."""
        if not level:
            return -wanted
        return math.sqrt(max(0.0, problem.measured("keep", problem.variables.uniform(level)).mean)) - wanted

    wanted = math.sqrt(max(0.0, divergence))
    if beyond(1.0) <= 0:
        return 1.0
    return round(float(optimize.brentq(beyond, 0.0, 1.0, xtol=10**-PLACES, rtol=1e-3)), PLACES) if wanted else 0.0


def _part(problem: Problem, part: str, values: Sequence[float], uniform: Sequence[float], seed: int) -> Part:
    """The fit beside uniform and the two models on one part."""
    one, other = problem.measured(part, values), problem.measured(part, uniform)
    sft, rlhf = (problem.measured(part, uniform, end=end).mean for end in (0.0, 1.0))
    return Part(
        samples=len(problem.parts[part]),
        tokens=int(one.tokens.sum()),
        sft=sft,
        rlhf=rlhf,
        uniform=other.mean,
        fitted=one.mean,
        gain=paired_bootstrap(one, other, problem.prompts(part), seed),
    )


def _tradeoff(problem: Problem, values: list[float], uniform: list[float], alpha: float) -> list[Tradeoff]:
    """A tax-aware fit beside the models, the uniform average, and a fit that knows nothing of the tax."""
    problem.watcher.say("a plain fit at the same mean, to compare with")
    plain = minimise(problem.objective("fit"), values, problem.shares, alpha, tolerance=ROUGH, most=ROUGH_STEPS).values
    data = "held" if problem.parts["held"] else "fit"
    kept = "keep held" if problem.parts["keep held"] else "keep"
    found = []
    for name, mean, point, end in (
        ("sft", 0.0, uniform, 0.0),
        ("rlhf", 1.0, uniform, 1.0),
        ("uniform", round(problem.mean_ratio(uniform), PLACES), uniform, None),
        ("plain", alpha, plain, None),
        ("tax-aware", alpha, values, None),
    ):
        nll, kl = (problem.measured(part, point, end=end).mean for part in (data, kept))
        found.append(Tradeoff(name, mean, nll, kl))
    return found
