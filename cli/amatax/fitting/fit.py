"""Block ratios by maximum likelihood on responses of the RLHF model, their mean held at alpha (AMA, arXiv 2309.06256, Eq. 8)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from amatax.fitting.evidence import Interval, paired_bootstrap, ratio_intervals, verdict
from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Optimum, corners, distinct, feasible, minimise
from amatax.fitting.passes import Passes
from amatax.fitting.samples import Sample
from amatax.fitting.variables import PLACES, Variables, exact_mean
from amatax.recipes.schema import Ratios

FIRST_LOOK = 32  # samples that the first look and the rough descents see
STARTS = 3  # rough descents
ROUGH, FINE = 1e-4, 1e-6  # nats per token: where a descent stops; float32 tells no less than 1e-7 apart
ROUGH_STEPS, FINE_STEPS = 20, 60


@dataclass
class Part:
    """NLL in nats per response token on one part of the data.

    Attributes:
        samples, tokens: how many.
        sft, rlhf, uniform, fitted: of the two models, of every block at alpha, and of the fit. Where a bound on the tax decides
            alpha, uniform is the one that just keeps to the bound.
        gain: fitted minus uniform, with its paired bootstrap interval over prompts.
    """

    samples: int
    tokens: int
    sft: float
    rlhf: float
    uniform: float
    fitted: float
    gain: Interval


@dataclass
class Tradeoff:
    """Where some ratios stand between the two models, on samples that were not fitted (if there are any).

    Attributes:
        name: sft, rlhf, uniform, plain (a fit that knows nothing of the tax, at the same mean), tax-aware.
        alpha: the mean of the ratios.
        nll: on the RLHF model's responses, nats per response token.
        kl: mean KL(SFT || merged) on the kept prompts, nats per response token.
    """

    name: str
    alpha: float
    nll: float
    kl: float


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


@dataclass
class Fit:
    """A finished fit.

    Attributes:
        alpha: the mean of the ratios; held, but for a tax-aware fit that was left free to find it.
        names: of the unknowns.
        values: their ratios, as written into the recipe.
        intervals: 95 % sandwich intervals; None at a bound, or where the likelihood does not tell.
        ratios: the recipe's `merge.ratios`.
        fitted: what was found on the fitted part.
        held_out: on the part that was never fitted; None without one.
        verdict: fitted against uniform, held out: better, worse, indistinguishable, or too few prompts; else "not tested".
        optima: how many distinct optima the rough descents ended in.
        path: what is minimised on the fitted part, at each evaluation of the last descent.
        passes: passes with gradients that were made.
        found_alpha: the bound on the tax decided alpha; then `uniform` is the uniform average that just keeps to the bound.
        tradeoff: of a tax-aware fit.
        bound, weight: what it kept to.
        notes: what a careful user wants to know.
    """

    alpha: float
    names: list[str]
    values: list[float]
    intervals: list[Interval | None]
    ratios: Ratios
    fitted: Part
    held_out: Part | None
    verdict: str
    optima: int
    path: list[float]
    passes: int
    found_alpha: bool = False
    tradeoff: list[Tradeoff] = field(default_factory=list)
    bound: float | None = None
    weight: float | None = None
    notes: list[str] = field(default_factory=list)


def fit(
    merged: MergedModel,
    variables: Variables,
    train: Sequence[Sample],
    held: Sequence[Sample],
    alpha: float | None,
    journal: Passes,
    *,
    keep: Keep | None = None,
    seed: int = 0,
    begin: Sequence[float] | None = None,
    batch_tokens: int = 4096,
    start: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda n: None,
    say: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Find the ratios.

    Args:
        merged: both models, with one unknown for each of the variables.
        variables: the unknowns and how they enter the mean.
        train: the samples that are fitted.
        held: those that never are; may be none.
        alpha: the mean that is held; None, with `keep`: it is found.
        journal: of earlier passes.
        keep: what must stay of SFT (beyond the paper).
        seed: of the first look's samples and of the bootstrap.
        begin: the optimum of a neighbouring alpha, to start from instead of looking around.
        batch_tokens: tokens of a batch.
        start, advance: told the samples of a pass, and those that are done.
        say: told what is going on.
    """
    shares = [float(share) for share in variables.shares]
    count = len(shares)
    few = sorted(random.Random(seed).sample(range(len(train)), min(FIRST_LOOK, len(train))))
    parts = {"fit": list(train), "held": list(held), "look": [train[i] for i in few]}
    if keep is not None:
        parts |= {"keep": list(keep.train), "keep held": list(keep.held)}
    made = 0

    def passed(part: str, values: Sequence[float], gradient: bool = False, end: float | None = None) -> Measured:
        """One pass over a part; `end` is 0 or 1 for the two models themselves."""
        nonlocal made

        def run() -> Measured:
            nonlocal made
            made += gradient
            with torch.no_grad():
                merged.variables.copy_(torch.tensor(list(values), dtype=torch.float64))
            start(len(parts[part]))
            fixed = None if end is None else merged.everywhere(end)
            return measure(
                merged,
                parts[part],
                fixed,
                gradient=gradient,
                divergence=part.startswith("keep"),
                batch_tokens=batch_tokens,
                advance=advance,
            )

        return journal.measured(part if end is None else f"{part} {end:g}", list(values), gradient, run)

    def objective(part: str) -> Callable[[list[float]], tuple[float, list[float]]]:
        def evaluate(values: list[float]) -> tuple[float, list[float]]:
            found = passed(part, values, True)
            assert found.gradient is not None
            if keep is None or keep.weight is None or part.startswith("keep"):
                return found.mean, found.gradient.tolist()
            tax = passed("keep", values, True)
            assert tax.gradient is not None
            return found.mean + keep.weight * tax.mean, (found.gradient + keep.weight * tax.gradient).tolist()

        return evaluate

    found_alpha = alpha is None
    merged.hold_mean(shares if alpha is not None else None)
    limit = (objective("keep"), keep.most) if keep is not None and keep.most is not None else None
    level = alpha if alpha is not None else _level(lambda a: passed("keep", variables.uniform(a)).mean, keep)
    uniform = feasible(variables.uniform(level), shares, alpha)
    rough: list[Optimum] = []
    if begin is None and alpha is not None and keep is None and sum(1 for s in shares if s) + (0 in shares) > 1:
        say("a first look around")
        looks = sorted((passed("look", point).mean, point) for point in corners(count, shares, alpha))
        starts = [uniform, *(point for _, point in looks if point != uniform)][:STARTS]
        rough = [minimise(objective("look"), s, shares, alpha, tolerance=ROUGH, most=ROUGH_STEPS) for s in starts]
    optima = distinct(rough)
    say("fitting")
    first = begin if begin is not None else optima[0].values if optima else uniform
    best = minimise(objective("fit"), first, shares, alpha, tolerance=FINE, most=FINE_STEPS, limit=limit)
    if alpha is None:
        alpha = round(sum(s * v for s, v in zip(shares, best.values, strict=True)), PLACES)
        if limit is None:
            uniform = variables.uniform(alpha)
    values = exact_mean(best.values, variables.shares, alpha)
    if keep is None and passed("fit", values).mean > passed("fit", uniform).mean:
        values = exact_mean(uniform, variables.shares, alpha)

    say("how sure it is")
    prompts = [sample.prompt for sample in train]
    intervals: list[Interval | None] = [None] * count
    if keep is None:  # of a bounded fit the bound decides, not the likelihood's curvature
        intervals = ratio_intervals(lambda point: passed("fit", point, True), values, shares, prompts, held=any(shares))

    def report(part: str) -> Part:
        one, other = passed(part, values), passed(part, uniform)
        keys = [sample.prompt for sample in parts[part]]
        sft, rlhf = (passed(part, uniform, end=end).mean for end in (0.0, 1.0))
        gain = paired_bootstrap(one, other, keys, seed)
        return Part(
            samples=len(keys),
            tokens=int(one.tokens.sum()),
            sft=sft,
            rlhf=rlhf,
            uniform=other.mean,
            fitted=one.mean,
            gain=gain,
        )

    held_out = report("held") if held else None
    tradeoff: list[Tradeoff] = []
    if keep is not None:
        say("a plain fit at the same mean, to compare with")
        plain = minimise(objective_plain(passed), values, shares, alpha, tolerance=ROUGH, most=ROUGH_STEPS).values
        data, kept = "held" if held else "fit", "keep held" if keep.held else "keep"
        for name, mean, point, end in (
            ("sft", 0.0, uniform, 0.0),
            ("rlhf", 1.0, uniform, 1.0),
            ("uniform", sum(s * v for s, v in zip(shares, uniform, strict=True)), uniform, None),
            ("plain", alpha, plain, None),
            ("tax-aware", alpha, values, None),
        ):
            nll, kl = passed(data, point, end=end).mean, passed(kept, point, end=end).mean
            tradeoff.append(Tradeoff(name, mean, nll, kl))
    return Fit(
        alpha=alpha,
        names=variables.names,
        values=values,
        intervals=intervals,
        ratios=variables.ratios(values),
        fitted=report("fit"),
        held_out=held_out,
        verdict=verdict(held_out.gain, len({sample.prompt for sample in held})) if held_out else "not tested",
        optima=len(optima),
        path=best.path,
        passes=made,
        found_alpha=found_alpha and limit is not None,
        tradeoff=tradeoff,
        bound=keep.most if keep else None,
        weight=keep.weight if keep else None,
    )


def objective_plain(
    passed: Callable[[str, Sequence[float], bool], Measured],
) -> Callable[[list[float]], tuple[float, list[float]]]:
    """The NLL alone."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        found = passed("fit", values, True)
        assert found.gradient is not None
        return found.mean, found.gradient.tolist()

    return evaluate


def _level(kl: Callable[[float], float], keep: Keep | None) -> float:
    """Where a fit that is free to find alpha begins: uniform at the bound, or in the middle."""
    if keep is None or keep.most is None:
        return 0.5
    low, high = 0.0, 1.0
    if kl(high) <= keep.most:
        return high
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle) <= keep.most else (low, middle)
    return low
