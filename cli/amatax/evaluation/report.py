"""report.html: one page that says what came out, shows it, and says what was run on what. It loads nothing and needs no script.

Whatever comes from outside (names, responses, prompts) is escaped, and a policy in the page's head lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from amatax.evaluation.choice import Choice
from amatax.evaluation.files import write_whole
from amatax.evaluation.fronts import pairs
from amatax.evaluation.page import (
    comparison_table,
    example_cards,
    facts,
    measure_facts,
    miss_table,
    points_table,
    proposal_table,
    ratio_bars,
    text_list,
)
from amatax.evaluation.picture import INK, LOOKS, LOOSE, front_svg
from amatax.evaluation.predicting import Foretold
from amatax.evaluation.results import Point, Results
from amatax.evaluation.series import STEM, digits_of, number, ratios_in_words
from amatax.evaluation.statistics import standard_error, value_of
from amatax.evaluation.words import area_in_words, area_rows, headline, sentences

Prompts = Mapping[str, Mapping[str, str]]  # measure -> sample -> prompt


def write_report(
    results: Results,
    path: Path,
    *,
    choice: Choice | None = None,
    title: str = "",
    about: Mapping[str, str] | None = None,
    prompts: Prompts | None = None,
    notes: Sequence[str] = (),
    foretold: Foretold | None = None,
) -> Path:
    """Write the page; same results, same bytes.

    Args:
        results: of SFT and RLHF, and of merges.
        choice: what was chosen; without it the page has no verdict.
        title: what was swept, such as the recipe's name.
        about: what was run on what: versions, checksums, the command.
        prompts: of the samples whose responses are shown.
        notes: what else a careful reader wants to know.
        foretold: what a surrogate predicted, and how well.

    Raises:
        MissingExtraError: without matplotlib.
        OutputError: if it cannot be written.
    """
    page = _page(results, choice, title, about or {}, prompts or {}, notes, foretold)
    return write_whole(path, page.encode(errors="replace"))


def _page(
    results: Results,
    choice: Choice | None,
    title: str,
    about: Mapping[str, str],
    prompts: Prompts,
    notes: Sequence[str],
    foretold: Foretold | None,
) -> str:
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    name = f"The reward-tax front{f' of {title}' if title else ''}"
    chosen = choice.point if choice is not None else None
    body = [
        f"<h1>{escape(name)}</h1>",
        *([_verdict(results, choice)] if choice is not None else []),
        *_fronts(results, chosen, foretold),
        "<h2>Every point</h2>",
        "<p class=soft>Each measure with its standard error (jackknife over samples, all of the data). "
        "● is on the front of a gain and a tax.</p>",
        points_table(results, chosen),
    ]
    if choice is not None and choice.comparisons:
        body += [
            f"<h2>{escape(chosen.name if chosen else '')} beside the others</h2>",
            "<p class=soft>Differences on the half of the samples that did not choose, with 95 % intervals of a paired "
            "bootstrap. Of twenty comparisons of equals, about one is called different by chance.</p>",
            comparison_table(results, choice),
        ]
    if foretold is not None:
        body += _surrogate(results, foretold)
    body += ["<h2>Share of RLHF, by part of the model</h2>", ratio_bars(results, chosen)]
    if shown := example_cards(results, _side_by_side(results, choice), prompts):
        body += [
            "<h2>What they answer</h2>",
            "<p class=soft>Samples spread evenly over the half that did not choose, among those where not all three answer "
            "alike; none is picked by its score.</p>",
            shown,
        ]
    body += ["<h2>What was run on what</h2>", facts(about), "<h3>Measures</h3>", measure_facts(results)]
    if notes:
        body += ["<h3>Notes</h3>", text_list(notes)]
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _verdict(results: Results, choice: Choice) -> str:
    first, *rest = sentences(results, choice)
    areas = [area_in_words(row) for row in area_rows(results)]
    more = f"<details><summary>Ways of merging compared</summary>{text_list(areas)}</details>" if areas else ""
    return (
        f"<div class=verdict><strong>{escape(headline(choice))}</strong>"
        f"<p class=first>{escape(first)}</p>{text_list(rest)}{more}</div>"
    )


def _surrogate(results: Results, foretold: Foretold) -> list[str]:
    """How well a quadratic predicts, and what became of its proposals."""
    note = f"<p>{escape(foretold.note)}</p>" if foretold.note else ""
    if not foretold.misses:
        return ["<h2>What was predicted</h2>", note]
    words = (
        f"{foretold.headline()} The table says by how much it misses points that it was not fitted to (root of the mean square), beside the "
        "standard error of one point and the spread of those that it was fitted to. Its front is dashed above: the best of thousands of "
        "predictions, which promises too much. Only measured merges are chosen."
    )
    return [
        "<h2>What was predicted</h2>",
        note,
        f"<p class=soft>{escape(words)}</p>",
        miss_table(foretold),
        "<p class=soft>The merges that it predicted to be best, as they were measured:</p>" if foretold.names else "",
        proposal_table(results, foretold),
    ]


def _fronts(results: Results, chosen: Point | None, foretold: Foretold | None) -> list[str]:
    shown = pairs(results)
    if not shown:
        return ["<p>No measure is better after RLHF while another is worse: there is no front to draw.</p>"]
    dashed = " Dashed: predicted, not measured." if foretold is not None and foretold.fronts else ""
    figures = []
    for i, (gain, tax) in enumerate(shown):
        drawn = front_svg(results, gain, tax, chosen.name if chosen else "", foretold.drawn if foretold else None)
        svg = _inlined(drawn, results, (gain, tax), i)
        caption = f"{STEM.get(tax, tax)} against {STEM.get(gain, gain)}; bars are 95 % intervals.{dashed} Point at a mark for its numbers."
        figures.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
    return [
        f"<h2>The front{'s' if len(shown) > 1 else ''}</h2>",
        "<p class=soft>Better is up and to the right. A merge on the grey band is beaten by none in these two measures.</p>",
        f"<div class=fronts>{''.join(figures)}</div>",
    ]


def _inlined(svg: str, results: Results, names: tuple[str, str], number_of: int) -> str:
    """An SVG for the page: its colours and fonts are the page's, its ids its own, its points say their numbers."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1f{number_of}-", svg)
    for i, (colour, _) in enumerate(LOOKS):
        svg = svg.replace(colour, f"var(--c{i})")
    svg = svg.replace(LOOSE[0], "var(--loose)").replace(INK, "currentColor").replace("#000000", "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for i, point in enumerate(results.points):
        svg = svg.replace(
            f'<g id="f{number_of}-point-{i}">',
            f'<g id="f{number_of}-point-{i}"><title>{escape(_told(results, point))}</title>',
        )
    what = escape(f"{names[1]} against {names[0]}: the numbers are in the table below", quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{what}" fill="currentColor" ', 1)


def _told(results: Results, point: Point) -> str:
    """A point's numbers, when it is pointed at."""
    lines = [point.name, *([ratios_in_words(point.ratios)] if point.ratios else [])]
    for name, measured in point.measured.items():
        measure, digits = results.measures[name], digits_of(results, name)
        value, error = value_of(measure, measured), standard_error(measure, measured)
        lines.append(f"{name} {number(value, digits)} ± {number(error, digits)}")
    return "\n".join(lines)


def _side_by_side(results: Results, choice: Choice | None) -> list[Point]:
    """SFT, the chosen merge (or the nearest, or the one in the middle), RLHF."""
    by_kind = {point.kind: point for point in reversed(results.points) if point.kind in ("sft", "rlhf")}
    middle = choice.point or (choice.nearest[0] if choice.nearest else None) if choice is not None else None
    return [p for p in (by_kind.get("sft"), middle, by_kind.get("rlhf")) if p is not None]


def _asset(name: str) -> str:
    return files("amatax.evaluation").joinpath(name).read_text(encoding="utf-8")
