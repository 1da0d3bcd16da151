"""The verdict in words: what the chosen merge keeps and pays, whether that is sure, and how ways of merging compare."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from amatax.evaluation.choice import Choice, Comparison, Held, part
from amatax.evaluation.fronts import (
    Area,
    constant,
    corners,
    hypervolume,
    hypervolume_difference,
    pairs,
    sides,
    without_error,
)
from amatax.evaluation.predicting import Foretold, Miss
from amatax.evaluation.results import Point, Results
from amatax.evaluation.series import UNORDERED, in_series
from amatax.evaluation.statistics import value_of
from amatax.fitting.bootstrap import Interval


class AreaRow(NamedTuple):
    """The area under one way of merging beside that under uniform averaging at the same alphas, in one pair of measures."""

    gain: str
    tax: str
    series: str
    alphas: tuple[float, ...]
    one: Area
    uniform: Area
    apart: Interval
    verdict: str


def headline(choice: Choice) -> str:
    """One line: what to take."""
    if choice.point is not None:
        return f"Take {choice.point.name}."
    assert choice.nearest is not None
    return f"No merge of {choice.candidates[0]} keeps what was asked. {choice.nearest[0].name} comes nearest."


def sentences(results: Results, choice: Choice) -> list[str]:
    """What is to be known of the choice, the most important first; all figures are of the half that did not choose."""
    reporting = part(results, "report")
    asked = [requirement.text for requirement in choice.rule.requirements]
    told = []
    if choice.point is None:
        assert choice.nearest is not None
        point, missed = choice.nearest
        for text, by in missed.items():
            told.append(
                f"{point.name} misses {text} by {by:.0%} of what lies between SFT and RLHF, on the half that chooses."
            )
        return [*told, f"{keeps(reporting, point.name, constant(results))}", "Ask for less, or measure more merges."]
    told.append(keeps(reporting, choice.point.name, constant(results)))
    told += [requirement_in_words(held) for held in choice.held]
    if choice.uniform:
        told.append(
            f"Beside uniform averaging at the same alpha ({choice.uniform}) {beside(choice.comparisons, choice.uniform)}."
        )
    elif choice.point.kind != "uniform":
        told.append("No uniform average at the same alpha was measured, so the two cannot be compared.")
    for kind in ("sft", "rlhf"):
        other = next(point.name for point in results.points if point.kind == kind)
        told.append(f"Beside {kind.upper()} {beside(choice.comparisons, other)}.")
    every, holding = choice.candidates
    among = f"{holding} of {every} merges that hold {' and '.join(asked)}" if asked else f"{every} merges"
    told.append(f"Chosen among {among}, by {choice.rule.in_words()}.")
    return told


def keeps(results: Results, name: str, without: Collection[str] = ()) -> str:
    """`It has 90 % of RLHF's gain in reward and pays 12 % of its tax in abilities.`, but for measures that are left out."""
    ends = {measure: corner for measure, corner in corners(results).items() if measure not in without}
    point = next(p for p in results.points if p.name == name)
    found = sides(results.measures, ends)
    shares = {
        measure: float(ends[measure].normalised(results.measures[measure], value_of(results.measures[measure], m)))
        for measure, m in point.measured.items()
        if measure in ends and ends[measure].side(results.measures[measure])
    }
    has = [f"{shares[n]:.0%} of RLHF's gain in {n}" for n in found["gain"] if n in shares]
    pays = [f"{max(0.0, 1 - shares[n]):.0%} of its tax in {n}" for n in found["tax"] if n in shares]
    told = [*([f"has {listed(has)}"] if has else []), *([f"pays {listed(pays)}"] if pays else [])]
    return f"{name} {' and '.join(told)}."


def sameness(results: Results) -> list[str]:
    """What tells no merge from another, and of what the errors say nothing."""
    told = []
    for name, value in constant(results).items():
        has = f"is {value:.4g}" if value == value else "has no value"
        told.append(
            f"{name} {has} at every point: it tells no merge from another, and is left out of the fronts and of the choice."
        )
    for name in without_error(results):
        told.append(f"{name}: at no point any sample differs from another, so its errors are 0 and say nothing.")
    return told


def beside(comparisons: Sequence[Comparison], other: str) -> str:
    """`it is better in reward, indistinguishable in abilities`."""
    of: dict[str, list[str]] = {}
    for row in comparisons:
        if row.other == other:
            of.setdefault(row.verdict, []).append(row.measure)
    words = []
    for verdict in ("better", "worse", "indistinguishable"):
        if verdict in of:
            words.append(f"{verdict} in {listed(of[verdict])}")
    told = f"it is {', '.join(words)}" if words else ""
    moved = [f"its {name} is {verdict}" for verdict in ("more", "less") for name in of.get(verdict, [])]
    few = [f"too few samples tell {listed(of['too few'])}"] if "too few" in of else []
    return "; ".join([*([told] if told else []), *moved, *few]) or "nothing was measured on both"


def requirement_in_words(held: Held) -> str:
    """`abilities >= 0.98*sft holds on the other half of the data: 0.873, where at least 0.827 was asked.`"""
    least = "at least" if held.requirement.at_least else "at most"
    bound = held.value - held.margin.value
    return f"{held.requirement.text} {held.verdict}: {held.value:.4g}, where {least} {bound:.4g} was asked."


def area_rows(results: Results, seed: int = 0) -> list[AreaRow]:
    """Every other way of merging against uniform averaging, at the alphas that both were measured at (two or more)."""
    rows = []
    lines = in_series(results.points)
    for gain, tax in pairs(results):
        whole = {name: [p for p in line if {gain, tax} <= p.measured.keys()] for name, line in lines.items()}
        plain = {point.alpha: point for point in whole.get("uniform", [])}
        for name, line in whole.items():
            if name == "uniform" or name in UNORDERED:
                continue
            shared = [point for point in line if point.alpha in plain]
            if len(shared) < 2:
                continue
            twins: list[Point] = [plain[point.alpha] for point in shared]
            apart = hypervolume_difference(results, gain, tax, shared, twins, seed)
            verdict = "better" if apart.low > 0 else "worse" if apart.high < 0 else "indistinguishable"
            areas = [hypervolume(results, gain, tax, points, seed) for points in (shared, twins)]
            alphas = tuple(point.alpha for point in shared if point.alpha is not None)
            rows.append(AreaRow(gain, tax, name, alphas, areas[0], areas[1], apart, verdict))
    return rows


def area_in_words(row: AreaRow) -> str:
    """One sentence."""
    alphas = listed([f"{alpha:.4g}" for alpha in row.alphas])
    theirs = {"better": "larger than", "worse": "smaller than", "indistinguishable": "indistinguishable from"}[
        row.verdict
    ]
    one, uniform, apart = row.one.interval, row.uniform.interval, row.apart
    return (
        f"{row.gain} against {row.tax}, at alpha {alphas}: the area under {row.series} is {one.value:.2f} "
        f"({one.low:.2f} to {one.high:.2f}), {theirs} that under uniform averaging, {uniform.value:.2f} "
        f"({uniform.low:.2f} to {uniform.high:.2f}); difference {apart.value:+.2f} ({apart.low:+.2f} to {apart.high:+.2f})."
    )


def miss_heads(foretold: Foretold) -> list[str]:
    """The columns of `miss_figures`, the measure's and the words' around them."""
    counts = [("proposed", foretold.names), ("others", foretold.others)]
    some = [f"{len(names)} {head}" for head, names in counts if names]
    return ["", "left out", *some, "± of one", "spread", ""]


def miss_figures(miss: Miss, foretold: Foretold) -> list[str]:
    """How far a surrogate misses, in three figures each; a dash for what is not known."""
    some = [value for value, names in ((miss.proposed, foretold.names), (miss.others, foretold.others)) if names]
    return [f"{v:.3g}" if math.isfinite(v) else "–" for v in (miss.left_out, *some, miss.noise, miss.spread)]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
