"""Block ratios by maximum likelihood on responses of the RLHF model, their mean held at alpha (AMA, arXiv 2309.06256, Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from amatax.fitting.evidence import paired_bootstrap, verdict
from amatax.fitting.intervals import mean_interval, ratio_intervals
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Optimum, apart, feasible, minimise
from amatax.fitting.paper import Preset, one_epoch
from amatax.fitting.passes import Passes
from amatax.fitting.problem import Keep, Problem
from amatax.fitting.result import Fit, Part, Tradeoff
from amatax.fitting.samples import Sample
from amatax.fitting.sampling import Watching
from amatax.fitting.search import FINE_STEPS, FINEST, search
from amatax.fitting.uncertainty import fit_covariance, holders
from amatax.fitting.variables import PLACES, Variables, exact_mean

ONE_PLACE = 10.0**-PLACES
ROUGHLY = 1e-3  # how well 16 bits tell the level of a divergence


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
        begin: the descent at another alpha: see `search`.
        preset: the paper's own way, at a held mean and without `keep`.
        regulariser: strength of C.5, nats per token.
        batch_tokens: tokens of a batch.
    """
    parts = {"fit": train, "held": held}
    if keep is not None:
        parts |= {"keep": keep.train, "keep held": keep.held}
    problem = Problem(merged, variables, parts, journal, batch_tokens, watcher, alpha)
    merged.hold_mean(problem.shares if alpha is not None else None)

    bound = keep.most if keep is not None and alpha is None else None
    held_alpha = alpha is not None
    level = alpha if alpha is not None else _level_of(problem, bound) if bound is not None else 0.5
    uniform = problem.written(feasible(variables.uniform(level), problem.shares, alpha))
    seen = 0
    if preset is not None and alpha is not None:
        watcher.say("fitting")
        best = one_epoch(problem, alpha, preset, seed)
    else:
        best, seen = search(problem, level, keep, regulariser, begin, seed)
    if alpha is None:
        values = [round(value, PLACES) for value in best.values]
        alpha = round(problem.mean_ratio(values), PLACES)
    else:
        values = exact_mean(best.values, variables.shares, alpha)
    if bound is not None:  # compared with the uniform average that costs as much
        uniform = variables.uniform(alpha)
        if apart(uniform, values) <= ONE_PLACE:
            uniform = values
        else:
            uniform = variables.uniform(_level_of(problem, problem.measured("keep", values).mean))
    elif keep is not None:
        uniform = variables.uniform(alpha)
    own = not (keep or preset or regulariser)
    if own and problem.measured("fit", values).mean > problem.measured("fit", uniform).mean:
        values = exact_mean(uniform, variables.shares, alpha)

    watcher.say("how sure it is")
    held_by, covariance = holders(problem, values, regulariser), None
    if preset is None:  # else an early end decides
        covariance = fit_covariance(problem, values, keep, held_by)
    intervals, mean = ratio_intervals(values, covariance), None
    if covariance is not None and not held_alpha:
        mean = mean_interval(values, intervals, problem.shares, covariance)
    tradeoff = _tradeoff(problem, values, uniform, alpha, seed) if keep is not None else []
    held_out = _part(problem, "held", values, uniform, seed) if held else None
    return Fit(
        alpha=alpha,
        names=variables.names,
        values=values,
        intervals=intervals,
        held_by=held_by,
        ratios=variables.ratios(values),
        fitted=_part(problem, "fit", values, uniform, seed),
        held_out=held_out,
        verdict=verdict(held_out.gain, held_out.prompts) if held_out else "not tested",
        optima=seen,
        descent=best,
        own_optimum=own,
        found_alpha=bound is not None,
        tradeoff=tradeoff,
        bound=keep.most if keep else None,
        weight=keep.weight if keep else None,
        passes=problem.made,
        held_alpha=held_alpha,
        alpha_interval=mean,
        ended_early=preset is not None,
        kept=_part(problem, "keep", values, uniform, seed) if keep is not None else None,
        kept_held_out=_part(problem, "keep held", values, uniform, seed) if keep is not None and keep.held else None,
    )


def _level_of(problem: Problem, divergence: float) -> float:
    """Where the uniform average has this KL(SFT || merged) on the kept prompts; 1 if it never has so much."""
    from scipy import optimize

    def beyond(level: float) -> float:
        """The divergence grows with the square of the level, from none at SFT."""
        if not level:
            return -wanted
        return math.sqrt(max(0.0, problem.measured("keep", problem.variables.uniform(level)).mean)) - wanted

    wanted, nearest = math.sqrt(max(0.0, divergence)), ONE_PLACE if problem.precise else ROUGHLY
    if beyond(1.0) <= 0:
        return 1.0
    return round(float(optimize.brentq(beyond, 0.0, 1.0, xtol=nearest, rtol=nearest)), PLACES) if wanted else 0.0


def _part(problem: Problem, part: str, values: Sequence[float], uniform: Sequence[float], seed: int) -> Part:
    """The fit beside uniform and the two models on one part."""
    one, other = problem.measured(part, values), problem.measured(part, uniform)
    sft, rlhf = (problem.measured(part, uniform, end=end).mean for end in (0.0, 1.0))
    return Part(
        samples=len(problem.parts[part]),
        tokens=int(one.tokens.sum()),
        prompts=len(set(problem.prompts(part))),
        sft=sft,
        rlhf=rlhf,
        uniform=other.mean,
        fitted=one.mean,
        gain=paired_bootstrap(one, other, problem.prompts(part), seed),
    )


def _tradeoff(problem: Problem, values: list[float], uniform: list[float], alpha: float, seed: int) -> list[Tradeoff]:
    """A tax-aware fit beside the models, the uniform average, and a fit that knows nothing of the tax."""
    problem.watcher.say("a plain fit at the same mean, to compare with")
    plainly = replace(problem, alpha=alpha)
    best, _ = search(plainly, alpha, None, 0.0, None, seed)
    if problem.measured("fit", values).mean < best.value:  # the tax led to a better place
        goal = plainly.objective("fit")
        best = minimise(goal, values, problem.shares, alpha, tolerance=FINEST, most=FINE_STEPS)
    plain, problem.made = exact_mean(best.values, problem.variables.shares, alpha), plainly.made
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
