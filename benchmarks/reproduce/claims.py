"""What is claimed, by the paper (arXiv 2309.06256) and by us, and the differences that tell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from amatax.evaluation.fronts import area, corners, the_point
from amatax.evaluation.results import Point
from amatax.evaluation.statistics import value_of
from benchmarks.reproduce.contrasts import GAIN, TAX, between_points, of_areas, of_fronts, of_ways, with_model
from benchmarks.reproduce.grid import DENSITIES, PLAIN, RATIOS, TAX_AWARE, UNIFORM
from benchmarks.reproduce.table import Table
from benchmarks.reproduce.verdicts import Contrast, judge, judge_any_apart

INPUT, MIDDLE, OUTPUT = (f"parts-{part}" for part in ("input", "middle", "output"))
STRAIGHT = 0.5  # the area under the straight line from SFT to RLHF


class Row(NamedTuple):
    """One difference; positive is what the claim says."""

    what: str
    contrast: Contrast


class Claim(NamedTuple):
    """A claim and its fate.

    Attributes:
        title: in a few words.
        says: the claim, and how it is judged here.
        source: who claims it.
        rows: what the verdict hangs on.
        verdict: in words.
        beside: differences that are shown, and do not count.
    """

    title: str
    says: str
    source: str
    rows: list[Row]
    verdict: str
    beside: Sequence[Row] = ()


def all_claims(table: Table) -> list[Claim]:
    """Every claim, judged; without those of ways that are not measured yet."""
    found = [
        tax(table), straight(table), parts_differ(table), input_best(table), input_gains_twice(table),
        *adaptive(table), more_blocks(table), small_share(table), *tax_aware(table), others(table, "ties"),
        others(table, "dare"),
    ]  # fmt: skip
    return [claim for claim in found if claim.rows]


def _measured(table: Table, pattern: str, numbers: Sequence[float]) -> list[float]:
    """Those numbers (of blocks, densities) whose way was measured."""
    return [number for number in numbers if pattern.format(number) in table.ways]


def tax(table: Table) -> Claim:
    sft, rlhf = (the_point(table.results, kind) for kind in ("sft", "rlhf"))
    rows = [
        Row("reward, RLHF - SFT", between_points(table.results, GAIN, [[(rlhf, sft)]])),
        Row("abilities, SFT - RLHF", between_points(table.results, TAX, [[(sft, rlhf)]])),
    ]
    nll = Row("NLL of SFT's answers, RLHF - SFT", between_points(table.results, "nll", [[(sft, rlhf)]]))
    says = "RLHF buys reward with abilities. (The family was trained so that it shows this.)"
    return _all("The alignment tax", says, PAPER, rows, [nll])


def straight(table: Table) -> Claim:
    def over(ratios: Sequence[float], by: str) -> Contrast:
        return of_areas(table, [table.points("uniform", 0, ratios)], STRAIGHT, by)

    says = (
        "Averages of the weights lie above the straight line from SFT to RLHF, on which one is who lets the one or the other model "
        f"answer by lot. The area under {len(UNIFORM)} averages is more than the {STRAIGHT} under the whole line."
    )
    rows = [Row(f"area - {STRAIGHT}, reward and abilities", over((), TAX))]
    beside = [
        Row(f"the same of {len(RATIOS)} averages", over(RATIOS, TAX)),
        Row(f"area - {STRAIGHT}, reward and NLL of SFT's answers", over((), "nll")),
    ]
    return _all("Averaging against a straight trade-off", says, PAPER, rows, beside)


def parts_differ(table: Table) -> Claim:
    pairs = ((INPUT, MIDDLE), (INPUT, OUTPUT), (MIDDLE, OUTPUT))
    rows = [
        Row(f"area, {one} - {other}", of_fronts(table, one, other, RATIOS, looks=len(pairs))) for one, other in pairs
    ]
    says = (
        "Averaging only the input, the middle or the output third of the layers (the rest is RLHF) gives different trade-offs. "
        "The intervals allow for three looks."
    )
    verdict = judge_any_apart([row.contrast for row in rows])
    return Claim("Parts differ", says, f"{PAPER}, Section 4", rows, verdict)


def input_best(table: Table) -> Claim:
    rows = [Row(f"area, {INPUT} - {other}", of_fronts(table, INPUT, other, RATIOS)) for other in (MIDDLE, OUTPUT)]
    beside = [
        Row(f"{row.what}, by NLL", of_fronts(table, INPUT, other, RATIOS, "nll"))
        for row, other in zip(rows, (MIDDLE, OUTPUT), strict=True)
    ]
    says = "Averaging the low layers is what helps: the input part has a better front than either other part."
    return _all("The input part is the best to average", says, f"{PAPER}, Section 4", rows, beside)


def input_gains_twice(table: Table) -> Claim:
    choosing, reporting = table.on("choose"), table.on("report")
    ends = corners(choosing.results)

    def least(ratio: float) -> float:
        (point,) = choosing.points(INPUT, 0, [ratio])
        gains = []
        for name in (GAIN, TAX):
            measure = choosing.results.measures[name]
            value = ends[name].normalised(measure, value_of(measure, point.measured[name]))
            gains.append(float(value - ends[name].normalised(measure, ends[name].rlhf)))
        return min(gains)

    best = max(RATIOS, key=least)
    rows = [
        Row(f"{name}, {INPUT} {best:g} - RLHF", with_model(reporting, name, INPUT, best, "rlhf"))
        for name in (GAIN, TAX)
    ]
    says = (
        'Averaging the input part betters both, reward and abilities, against RLHF (the "magical" improvement). The ratio was chosen on one '
        "half of the samples, the differences are of the other half."
    )
    return _all("The input part gains twice", says, f"{PAPER}, Section 4", rows)


def adaptive(table: Table) -> list[Claim]:
    ways = [f"fitted-{count}" for count in _measured(table, "fitted-{}", PLAIN)]
    mean = f"(mean over the ratios {_said(RATIOS)})"
    best = best_uniform(table)
    return [
        _each(
            "AMA has more reward than uniform averaging at equal alpha",
            f"Reward, fitted ratios minus uniform {mean}; each alpha by itself stands below.",
            PAPER,
            [Row(way, of_ways(table, GAIN, way, "uniform", RATIOS)) for way in ways],
        ),
        _each(
            "AMA keeps more abilities than uniform averaging at equal alpha",
            f"Abilities, fitted ratios minus uniform {mean}. (The paper's example gains in both: 7B, win rate and reading.)",
            PAPER,
            [Row(way, of_ways(table, TAX, way, "uniform", RATIOS)) for way in ways],
        ),
        _each(
            "AMA has a better front than uniform averaging at the same alphas",
            f"Area under reward and abilities of the {len(RATIOS)} fits minus that of the {len(RATIOS)} uniform averages.",
            PAPER,
            [Row(way, of_fronts(table, way, "uniform", RATIOS)) for way in ways],
            [Row(f"{way}, by NLL", of_fronts(table, way, "uniform", RATIOS, "nll")) for way in ways],
        ),
        _each(
            "AMA has a better front than the best uniform averages",
            _harder(best),
            "ours: alpha is free for whoever averages",
            [Row(way, against_best(table, way, best)) for way in ways],
        ),
    ]


def more_blocks(table: Table) -> Claim:
    rows = [
        Row(f"fitted-{PLAIN[0]} - fitted-{count}", of_fronts(table, f"fitted-{PLAIN[0]}", f"fitted-{count}", RATIOS))
        for count in _measured(table, "fitted-{}", PLAIN[1:])
    ]
    says = "More than three blocks lose a little (they over-fit to the reward): area at the same alphas."
    return _each("Three blocks are better than six or nine", says, f"{PAPER}, ablation", rows)


def small_share(table: Table) -> Claim:
    low = RATIOS[0]
    rows = [
        Row(f"{name}, uniform {low:g} - SFT", with_model(table, name, "uniform", low, "sft")) for name in (GAIN, TAX)
    ]
    beside = [Row(f"NLL, SFT - uniform {low:g}", with_model(table, "nll", "uniform", low, "sft"))]
    says = f"A small share of RLHF ({low:g} everywhere) betters both, reward and abilities, against SFT."
    return _all("A small share costs nothing", says, "ours", rows, beside)


def tax_aware(table: Table) -> list[Claim]:
    best = best_uniform(table)
    ways = [(count, f"tax-aware-{count}") for count in _measured(table, "tax-aware-{}", TAX_AWARE)]
    same = f"Area under reward and abilities at the same {len(RATIOS)} alphas."
    return [
        _each(
            "Tax-aware fits have a better front than plain fits",
            same,
            "ours",
            [Row(f"{way} - fitted-{count}", of_fronts(table, way, f"fitted-{count}", RATIOS)) for count, way in ways],
            [
                Row(f"{way} - fitted-{count}, by NLL", of_fronts(table, way, f"fitted-{count}", RATIOS, "nll"))
                for count, way in ways
            ],
        ),
        _each(
            "Tax-aware fits have a better front than uniform averaging at the same alphas",
            same,
            "ours",
            [Row(way, of_fronts(table, way, "uniform", RATIOS)) for _, way in ways],
            [Row(f"{way}, by NLL", of_fronts(table, way, "uniform", RATIOS, "nll")) for _, way in ways],
        ),
        _each(
            "Tax-aware fits have a better front than the best uniform averages",
            _harder(best),
            "ours",
            [Row(way, against_best(table, way, best)) for _, way in ways],
        ),
    ]


def others(table: Table, method: str) -> Claim:
    name = method.upper()
    rows = [
        Row(f"uniform - {method} {density:g}", of_fronts(table, "uniform", f"{method} {density:g}", RATIOS))
        for density in _measured(table, method + " {:g}", DENSITIES)
    ]
    says = (
        f"Area under reward and abilities at the same {len(RATIOS)} ratios, plain averages minus {name}, by density (the share of "
        "each change that is kept)."
    )
    return _each(f"Averaging has a better front than {name}", says, "ours: the paper compares with ways to train", rows)


def best_uniform(table: Table) -> tuple[float, ...]:
    """The uniform averages with the largest area, as many as there are fits, on the half that chooses."""
    half = table.on("choose")
    ends = corners(half.results)
    columns = []
    for name in (GAIN, TAX):
        measure = half.results.measures[name]
        values = np.array([value_of(measure, p.measured[name]) for p in half.points("uniform", 0, UNIFORM)])
        columns.append(dict(zip(UNIFORM, ends[name].normalised(measure, values).tolist(), strict=True)))

    def area_of(some: tuple[float, ...]) -> float:
        gains, kept = (np.array([column[ratio] for ratio in some]) for column in columns)
        return float(area(gains, kept))

    return max(combinations(UNIFORM, len(RATIOS)), key=area_of)


def against_best(table: Table, way: str, best: Sequence[float]) -> Contrast:
    """A way's area minus that of the best uniform averages, on the half that reports."""
    half = table.on("report")
    seeds = half.seeds(way)
    ours: list[list[Point]] = [half.points(way, seed, RATIOS) for seed in seeds]
    return of_areas(half, ours, [half.points("uniform", seed, best) for seed in seeds])


PAPER = "the paper"


def _harder(best: Sequence[float]) -> str:
    return (
        f"Area of the {len(RATIOS)} fits minus that of the {len(best)} uniform averages with the largest area ({_said(best)}: chosen on one half "
        "of the samples, compared on the other)."
    )


def _all(title: str, says: str, source: str, rows: list[Row], beside: Sequence[Row] = ()) -> Claim:
    """A claim that stands or falls with all of its rows."""
    return Claim(title, says, source, rows, judge([row.contrast for row in rows]), beside)


def _each(title: str, says: str, source: str, rows: list[Row], beside: Sequence[Row] = ()) -> Claim:
    """A claim with a verdict for each row; "" of none."""
    found = [judge([row.contrast]) for row in rows]
    together = all(a == b for a, b in pairwise(found))
    verdict = found[0] if found and together else "; ".join(f"{r.what}: {v}" for r, v in zip(rows, found, strict=True))
    return Claim(title, says, source, rows, verdict, beside)


def _said(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:g}" for ratio in ratios)
