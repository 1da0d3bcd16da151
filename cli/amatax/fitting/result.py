"""What a fit found."""

from __future__ import annotations

from dataclasses import dataclass, field

from amatax.fitting.bootstrap import Interval
from amatax.fitting.optimum import Optimum
from amatax.recipes.schema import Ratios


@dataclass
class Part:
    """NLL, or KL(SFT || model), in nats per response token on one part of the data.

    Attributes:
        samples, tokens, prompts: how many.
        sft, rlhf, uniform, fitted: of the two models, of every block at alpha, and of the fit. Where a bound on the tax decides
            alpha, uniform is the one of the same divergence.
        gain: fitted minus uniform, with its paired bootstrap interval over prompts.
    """

    samples: int
    tokens: int
    prompts: int
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


@dataclass
class Fit:
    """A finished fit.

    Attributes:
        alpha: the mean of the ratios; held, but for a tax-aware fit that was left free to find it.
        names: of the unknowns.
        values: their ratios, as written into the recipe.
        intervals: 95 % sandwich intervals; None for a ratio that cannot move, or where what was minimised does not tell.
        held_by: of each ratio: "bound" at 0 or 1, "regulariser" in the corner of its |a - alpha|, or "" for one that can move.
        ratios: the recipe's `merge.ratios`.
        fitted: what was found on the fitted part.
        held_out: on the part that was never fitted; None without one.
        verdict: fitted against uniform, held out: better, worse, indistinguishable, or too few prompts; else "not tested".
        optima: how many distinct optima the rough descents ended in.
        descent: the last one, on the fitted part; a neighbouring alpha begins where it ended.
        passes: passes with gradients that this run made; a continued one takes the others from its journal.
        own_optimum: the ratios are where the likelihood is largest; without a preset, a regulariser or a tax only.
        held_alpha: alpha was given.
        alpha_interval: of an alpha that was found.
        ended_early: with the preset; such fits have no intervals.
        found_alpha: the bound on the tax decided alpha; then `uniform` is the uniform average of the same divergence.
        tradeoff: of a tax-aware fit.
        kept, kept_held_out: its divergence, on the kept prompts that were fitted and on those that were not.
        bound, weight: what it kept to.
    """

    alpha: float
    names: list[str]
    values: list[float]
    intervals: list[Interval | None]
    held_by: list[str]
    ratios: Ratios
    fitted: Part
    held_out: Part | None
    verdict: str
    optima: int
    descent: Optimum
    passes: int
    own_optimum: bool = True
    held_alpha: bool = True
    alpha_interval: Interval | None = None
    ended_early: bool = False
    found_alpha: bool = False
    tradeoff: list[Tradeoff] = field(default_factory=list)
    kept: Part | None = None
    kept_held_out: Part | None = None
    bound: float | None = None
    weight: float | None = None
