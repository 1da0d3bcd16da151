"""The choice of a merge: on one half of the samples it is chosen, on the other half it is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from amatax.errors import DataError
from amatax.evaluation.fronts import constant, corners, is_merge, the_point
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Half, Measure, Point, Results, half_of
from amatax.evaluation.rule import Rule, rule
from amatax.evaluation.statistics import difference, half, in_words, samples_apart, standard_error, value_of
from amatax.fitting.bootstrap import FEWEST, Interval

SAME_ALPHA = 0.005  # a uniform average is at equal alpha if it is no farther
DIGITS = 6  # of what a record says


class Comparison(NamedTuple):
    """The chosen merge minus another point, in one measure, on the reported half.

    Attributes:
        measure: its name.
        other: the other point's name.
        apart: with the paired bootstrap interval.
        verdict: better, worse (more, less), indistinguishable, too few.
    """

    measure: str
    other: str
    apart: Interval
    verdict: str


class Held(NamedTuple):
    """A requirement on the reported half.

    Attributes:
        requirement: what was asked.
        value: of the chosen merge.
        margin: value minus bound, with its paired bootstrap interval; above 0 is on the right side for `>=`, below for `<=`.
        verdict: holds, holds but not for sure, does not hold but not for sure, does not hold.
    """

    requirement: Requirement
    value: float
    margin: Interval
    verdict: str


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        point: the merge; None if none holds every requirement.
        nearest: where there is none, the merge that came nearest, and by how much it misses each requirement that it misses
            (in units of what lies between SFT and RLHF).
        rule: by which.
        candidates: how many merges there were, and how many of them held every requirement.
        held: the requirements, on the reported half.
        comparisons: with SFT, RLHF and uniform averaging at equal alpha, on the reported half.
        uniform: the name of that uniform average; "" if it is one itself, or none was measured.
        halves: by measure, how many samples chose and how many reported.
    """

    point: Point | None
    nearest: tuple[Point, dict[str, float]] | None
    rule: Rule
    candidates: tuple[int, int]
    held: tuple[Held, ...]
    comparisons: tuple[Comparison, ...]
    uniform: str
    halves: dict[str, tuple[int, int]]


def choose(results: Results, requirements: Sequence[Requirement] = (), seed: int = 0) -> Choice:
    """The best merge by the rule (amatax.evaluation.rule), chosen on one half of the samples and compared on the other.

    Raises:
        DataError: without SFT or RLHF, without a merge that has every measure of the rule, or with too few samples to halve.
    """
    choosing, reporting = part(results, "choose"), part(results, "report")
    wanted = rule(results.measures, corners(choosing), requirements, without=constant(results))
    candidates = [p for p in choosing.points if is_merge(p) and set(wanted.names) <= p.measured.keys()]
    if not candidates:
        raise DataError(f"no merge was measured by {', '.join(wanted.names)}", "measure some, at several ratios")
    values = {
        name: np.array([value_of(results.measures[name], p.measured[name]) for p in candidates])
        for name in wanted.names
    }
    alphas = [p.alpha if p.alpha is not None else 1.0 for p in candidates]
    best = wanted.order(values, alphas, [p.name for p in candidates])[0]
    missed = wanted.shortfalls(values)
    halves = {
        name: (
            len(the_point(choosing, "sft").measured[name].samples),
            len(the_point(reporting, "sft").measured[name].samples),
        )
        for name in results.measures
        if name in the_point(results, "sft").measured
    }
    whole = next(p for p in results.points if p.name == candidates[best].name)
    holding = int((missed == 0).sum())
    if missed[best] > 0:
        short = {r.text: float(wanted.shortfall(r, values)[best]) for r in requirements}
        nearest = (whole, {text: by for text, by in short.items() if by > 0})
        return Choice(None, nearest, wanted, (len(candidates), 0), (), (), "", halves)
    uniform = uniform_like(results, whole)
    others = [the_point(results, "sft").name, the_point(results, "rlhf").name, *([uniform.name] if uniform else [])]
    return Choice(
        whole,
        None,
        wanted,
        (len(candidates), holding),
        tuple(_held(reporting, whole.name, requirement, seed) for requirement in requirements),
        tuple(c for other in others for c in compare(reporting, whole.name, other, seed)),
        uniform.name if uniform else "",
        halves,
    )


def part(results: Results, which: Half) -> Results:
    """The same table on one half of the samples.

    Raises:
        DataError: if a measure has fewer than two samples there.
    """
    points = []
    for point in results.points:
        check_halves({name: one.samples for name, one in point.measured.items()})
        measured = {name: half(one, which) for name, one in point.measured.items()}
        points.append(replace(point, measured=measured))
    return replace(results, points=tuple(points))


def check_halves(samples: Mapping[str, Sequence[str]]) -> None:
    """Whether samples can be divided into those that choose and those that report: two of each.

    Args:
        samples: their names, by measure.

    Raises:
        DataError: naming the measure that has too few.
    """
    for name, some in samples.items():
        choosing = sum(half_of(sample) == "choose" for sample in some)
        if min(choosing, len(some) - choosing) < 2:
            message = f"{name}: {len(some)} sample{'s' if len(some) != 1 else ''} cannot be halved, to choose by one half and report the other"
            raise DataError(message, f"measure more samples; {4 * FEWEST} are few")


def check_shares(results: Results, requirements: Sequence[Requirement]) -> None:
    """Whether requirements can be held against what SFT and RLHF have, once that is known.

    Raises:
        DataError: for a share of a negative number, or too few samples to choose by.
    """
    if requirements:
        ends = corners(part(results, "choose"))
        for requirement in requirements:
            requirement.bound(ends[requirement.name].sft, ends[requirement.name].rlhf)


def uniform_like(results: Results, point: Point) -> Point | None:
    """The uniform average at a merge's alpha; None if it is one itself, or none was measured there."""
    if point.kind == "uniform" or point.alpha is None:
        return None
    near = [
        (abs(p.alpha - point.alpha), p.name, p)
        for p in results.points
        if p.kind == "uniform" and p.alpha is not None and abs(p.alpha - point.alpha) <= SAME_ALPHA
    ]
    return min(near)[2] if near else None


def compare(results: Results, one: str, other: str, seed: int = 0) -> list[Comparison]:
    """One point against another in every measure that both have, in pairs of samples."""
    found = {point.name: point for point in results.points}
    rows = []
    for name, measure in results.measures.items():
        if name in found[one].measured and name in found[other].measured:
            mine, theirs = found[one].measured[name], found[other].measured[name]
            apart = difference(measure, mine, theirs, seed)
            rows.append(
                Comparison(name, other, apart, in_words(measure, apart, len(mine.samples), samples_apart(mine, theirs)))
            )
    return rows


def _held(results: Results, chosen: str, requirement: Requirement, seed: int) -> Held:
    point = next(p for p in results.points if p.name == chosen)
    measure, mine = results.measures[requirement.name], point.measured[requirement.name]
    model = the_point(results, requirement.model or "sft").measured[requirement.name]
    apart = difference(measure, mine, model, seed, factor=requirement.factor if requirement.model else 0.0)
    margin = Interval(*(number - requirement.offset for number in apart))
    if requirement.at_least:
        right, sure = margin.value >= 0, margin.low >= 0 or margin.high < 0
    else:
        right, sure = margin.value <= 0, margin.high <= 0 or margin.low > 0
    words = "holds" if right else "does not hold"
    sure = sure and len(mine.samples) >= FEWEST
    return Held(requirement, value_of(measure, mine), margin, words if sure else f"{words}, but not for sure")


def choice_record(results: Results, choice: Choice) -> dict[str, Any]:
    """What the chosen recipe says of how it was chosen; every figure is of the reported half, but for `chosen_on`.

    Raises:
        ValueError: if nothing was chosen.
    """
    if choice.point is None:
        raise ValueError("nothing was chosen")
    reporting, choosing = part(results, "report"), part(results, "choose")
    shown = ["sft", "rlhf", *([choice.uniform] if choice.uniform else [])]
    names = {choice.point.name: "chosen", choice.uniform: "uniform"}
    points = [p for p in reporting.points if p.name == choice.point.name or p.kind in shown[:2] or p.name in shown[2:]]
    return {
        "chosen": choice.point.name,
        "alpha": choice.point.alpha,
        "requirements": [
            {"asked": h.requirement.text, "value": _round(h.value), "margin": _rounded(h.margin), "verdict": h.verdict}
            for h in choice.held
        ],
        "rule": choice.rule.in_words(),
        "merges": {"measured": choice.candidates[0], "holding": choice.candidates[1]},
        "samples": {name: {"chosen_on": a, "reported_on": b} for name, (a, b) in choice.halves.items()},
        "chosen_on": {
            name: _round(value_of(results.measures[name], p.measured[name]))
            for p in choosing.points
            if p.name == choice.point.name
            for name in p.measured
        },
        "figures": {
            names.get(p.name, p.kind): {
                name: [_round(value_of(results.measures[name], m)), _round(standard_error(results.measures[name], m))]
                for name, m in p.measured.items()
            }
            for p in points
        },
        "compared": [
            {
                "measure": c.measure,
                "with": "uniform" if c.other == choice.uniform else c.other,
                "difference": _rounded(c.apart),
                "verdict": c.verdict,
            }
            for c in choice.comparisons
        ],
        "measures": {name: _said(measure) for name, measure in results.measures.items()},
    }


def _said(measure: Measure) -> dict[str, Any]:
    return {"kind": measure.kind, "higher": measure.higher, **measure.settings}


def _rounded(interval: Interval) -> list[float]:
    return [_round(number) for number in interval]


def _round(number: float) -> float:
    return round(number, DIGITS)
