"""The parts of the page: tables, bars and cards as HTML. Every text that goes in is escaped here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from amatax.evaluation.choice import Choice
from amatax.evaluation.examples import examples
from amatax.evaluation.fronts import front, pairs
from amatax.evaluation.picture import LOOKS, looks
from amatax.evaluation.predicting import Foretold
from amatax.evaluation.results import Point, Results
from amatax.evaluation.series import STEM, digits_for, digits_of, number, series_of
from amatax.evaluation.statistics import standard_error, value_of
from amatax.evaluation.words import miss_figures, miss_heads

BARS_SHOWN = 6  # points whose ratios are open; the others fold
BETTER = {"better", "worse"}


def points_table(results: Results, chosen: Point | None) -> str:
    """Points down, measures across."""
    best = {point.name for pair in pairs(results) for point in front(results, pair)}
    heads = "".join(
        f"<th class=number>{escape(STEM.get(n, n))}{_arrow(m.higher)}</th>" for n, m in results.measures.items()
    )
    digits = {name: digits_of(results, name) for name in results.measures}
    rows = []
    for point in results.points:
        alpha = "" if point.alpha is None else f"{point.alpha:.4g}"
        cells = [
            f"<th>{_key(results, point)}{escape(point.name)}{' ●' if point.name in best else ''}</th>",
            f'<td class=number data-value="{"" if point.alpha is None else repr(point.alpha)}">{alpha}</td>',
        ]
        for name, measure in results.measures.items():
            if name not in point.measured:
                cells.append("<td class=number>–</td>")
                continue
            value, error = value_of(measure, point.measured[name]), standard_error(measure, point.measured[name])
            shown = f"{number(value, digits[name])} <small>± {number(error, digits[name])}</small>"
            cells.append(f'<td class=number data-value="{value!r}">{shown}</td>')
        mark = " class=chosen" if chosen is not None and point.name == chosen.name else ""
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    head = f"<thead><tr><th>point</th><th class=number>alpha</th>{heads}</tr></thead>"
    return f"<div class=scroll><table class=sortable>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def comparison_table(results: Results, choice: Choice) -> str:
    """The chosen merge minus the others."""
    rows = []
    for row in choice.comparisons:
        digits = digits_for((row.apart.high - row.apart.low) / 4, row.apart.value)
        value, low, high = (_signed(number(n, digits)) for n in row.apart)
        mark = f" class={row.verdict}" if row.verdict in BETTER else ""
        kind = next(p.kind for p in results.points if p.name == row.other)
        other = kind.upper() if kind in ("sft", "rlhf") else row.other
        rows.append(
            f"<tr><th>{escape(row.measure)}</th><td>{escape(other)}</td><td{mark}>{escape(row.verdict)}</td>"
            f"<td class=number>{value}</td><td class=number>{low} to {high}</td></tr>"
        )
    head = "<thead><tr><th>measure</th><th>beside</th><th>it is</th><th class=number>by</th><th class=number>95 %</th></tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def miss_table(foretold: Foretold) -> str:
    """How far a surrogate misses what it was not fitted to."""
    heads = miss_heads(foretold)
    rows = []
    for miss in foretold.misses:
        cells = "".join(f"<td class=number>{escape(cell)}</td>" for cell in miss_figures(miss, foretold))
        rows.append(f"<tr><th>{escape(miss.measure)}</th>{cells}<td class=words>{escape(miss.words)}</td></tr>")
    numbers = "".join(f"<th class=number>{escape(head)}</th>" for head in heads[1:-1])
    head = f"<thead><tr><th>measure</th>{numbers}<th>the surrogate</th></tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def proposal_table(results: Results, foretold: Foretold) -> str:
    """What was predicted of each proposal, and what was measured."""
    if not foretold.names:
        return ""
    points = {point.name: point for point in results.points}
    rows = []
    for name, proposal in zip(foretold.names, foretold.proposals, strict=True):
        cells = []
        for one, value in proposal.predicted.items():
            measure, digits = results.measures[one], digits_of(results, one)
            shown = number(value_of(measure, points[name].measured[one]), digits)
            cells.append(f"<td class=number>{number(value, digits)} → {shown}</td>")
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th class=number>{escape(STEM.get(n, n))}</th>" for n in foretold.surfaces)
    head = f"<thead><tr><th>predicted → measured</th>{heads}</tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def ratio_bars(results: Results, chosen: Point | None) -> str:
    """A card of bars for every merge; the chosen one first, most of them folded."""
    merges = [point for point in results.points if point.ratios]
    merges.sort(key=lambda point: chosen is None or point.name != chosen.name)
    cards = [_card(results, point, chosen) for point in merges]
    shown, folded = cards[:BARS_SHOWN], cards[BARS_SHOWN:]
    if chosen is not None:
        shown, folded = cards[:1], cards[1:]
    more = (
        f"<details><summary>the other {len(folded)}</summary><div class=ratios>{''.join(folded)}</div></details>"
        if folded
        else ""
    )
    return f"<p class=soft>A full bar is RLHF, an empty one SFT.</p><div class=ratios>{''.join(shown)}</div>{more}"


def example_cards(results: Results, points: Sequence[Point], prompts: Mapping[str, Mapping[str, str]]) -> str:
    """Responses side by side."""
    cards = []
    for example in examples(results, points):
        answers = []
        for point in points:
            if point.name not in example.responses:
                continue
            name = point.kind.upper() if point.kind in ("sft", "rlhf") else point.name
            score = example.scores[point.name]
            answers.append(
                f"<div><h4><span>{escape(name)}</span><span>{escape(example.measure)} {score:.3g}</span></h4>"
                f"<pre>{escape(example.responses[point.name])}</pre></div>"
            )
        prompt = prompts.get(example.measure, {}).get(example.sample)
        asked = escape(prompt) if prompt is not None else f"<span class=soft>sample {escape(example.sample)}</span>"
        cards.append(f"<div class=example><p>{asked}</p><div class=answers>{''.join(answers)}</div></div>")
    return "".join(cards)


def measure_facts(results: Results) -> str:
    """Each measure's settings, and how many samples."""
    told = {}
    for name, measure in results.measures.items():
        count = max((len(p.measured[name].samples) for p in results.points if name in p.measured), default=0)
        way = {True: "more is better", False: "less is better", None: "neither direction is better"}[measure.higher]
        settings = [f"{k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in measure.settings.items()]
        told[name] = "; ".join([measure.kind, way, f"{count} samples", *settings])
    return facts(told)


def facts(told: Mapping[str, str]) -> str:
    """Names and what stands for them."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd>" for name, value in told.items())
    return f"<dl>{rows}</dl>"


def text_list(lines: Sequence[str]) -> str:
    """A list, a line each."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _card(results: Results, point: Point, chosen: Point | None) -> str:
    colour = _colour(results, point)
    bars = "".join(
        f'<div class=bar><span>{escape(_part(name))}</span><i><b style="width:{100 * min(max(ratio, 0.0), 1.0):.1f}%;background:{colour}"></b></i>'
        f"<span>{ratio:.3g}</span></div>"
        for name, ratio in point.ratios.items()
    )
    mark = " class=chosen" if chosen is not None and point.name == chosen.name else ""
    return f"<section{mark}><h3>{_key(results, point)}{escape(point.name)}</h3>{bars}</section>"


def _part(name: str) -> str:
    """`blocks.0.mlp` -> `block 0, mlp`: from 0, as `amatax merge` counts them."""
    head, *rest = name.split(".")
    if head == "blocks" and rest and rest[0].isdigit():
        return ", ".join([f"block {int(rest[0])}", *rest[1:]])
    return name


def _key(results: Results, point: Point) -> str:
    """A small square of the series' colour in the pictures."""
    return f'<span class=key style="background:{_colour(results, point)}"></span>'


def _colour(results: Results, point: Point) -> str:
    if point.kind in ("sft", "rlhf"):
        return "currentColor"
    colours = [look[0] for look in LOOKS]
    colour = looks(results)[series_of(point)][0]
    return f"var(--c{colours.index(colour)})" if colour in colours else "var(--loose)"


def _arrow(higher: bool | None) -> str:
    return {True: " ↑", False: " ↓", None: ""}[higher]


def _signed(shown: str) -> str:
    return shown.replace("-", "−") if shown.startswith("-") else f"+{shown}"
