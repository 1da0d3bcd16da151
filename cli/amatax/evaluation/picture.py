"""The front as a picture: what RLHF gained against what it cost, a line per way of merging, error bars, the Pareto front marked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError
from amatax.evaluation.files import write_whole
from amatax.evaluation.fronts import front, pairs
from amatax.evaluation.results import Measure, Point, Results
from amatax.evaluation.series import UNORDERED, in_series, label
from amatax.evaluation.statistics import standard_error, value_of
from amatax.fitting.picture import new_figure

# Okabe and Ito's colours, told apart by the colour-blind; markers tell the series apart in grey, too
LOOKS = (("#0072b2", "s"), ("#d55e00", "o"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"))
LOOK_OF = {"uniform": 0}
LOOSE = ("#8a8a8a", ".")
INK = "#1b1b1f"
BAR = 1.96  # standard errors
SALT = "amatax"  # ids in an SVG are hashes; without one they would be drawn by lot
WIDTH, HEIGHT = 4.2, 3.6  # inches of one pair: on a phone its text is as large as it is here


Predicted = Mapping[tuple[str, str], NDArray[np.float64]]  # (gain, tax) -> values (points, 2) of a surrogate's front


def draw_fronts(results: Results, folder: Path, chosen: str = "", predicted: Predicted | None = None) -> list[Path]:
    """Write front.png and front.svg: every pair of a gain and a tax. Same results, same bytes.

    Args:
        chosen: the point that is labelled as the chosen one.
        predicted: fronts that a surrogate foretells, dashed.

    Returns:
        The files.

    Raises:
        MissingExtraError: without matplotlib.
        DataError: if no measure gains while another pays.
    """
    shown = shown_pairs(results)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    files = []
    for kind in ("png", "svg"):
        figure = new_figure(WIDTH * columns, HEIGHT * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for i, place in enumerate(axes.flat):
            if i < len(shown):
                draw_pair(place, results, *shown[i], chosen, predicted)
            else:
                place.set_axis_off()
        files.append(write_whole(folder / f"front.{kind}", _bytes(figure, kind, "path")))
    return files


def front_svg(results: Results, gain: str, tax: str, chosen: str = "", predicted: Predicted | None = None) -> str:
    """One pair as an SVG element with live text, transparent, its points named `point-N` by their place in the table."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    draw_pair(axes, results, gain, tax, chosen, predicted)
    for patch in (figure.patch, axes.patch):
        patch.set_visible(False)
    text = _bytes(figure, "svg", "none").decode()
    return text[text.index("<svg") :]


def shown_pairs(results: Results) -> list[tuple[str, str]]:
    """(gain, tax) of every picture.

    Raises:
        DataError: if there is none.
    """
    found = pairs(results)
    if not found:
        raise DataError(
            "no measure is better after RLHF while another is worse: there is no front to draw",
            "measure what RLHF was for (a reward), and what it may have cost (abilities, kl)",
        )
    return found


def looks(results: Results) -> dict[str, tuple[str, str]]:
    """(colour, marker) of every series: uniform's are always the same."""
    names = [name for name in in_series(results.points) if name not in UNORDERED or name == "proposed"]
    others = [look for i, look in enumerate(LOOKS) if i not in LOOK_OF.values()]
    found = {name: LOOKS[i] for name, i in LOOK_OF.items()}
    for i, name in enumerate(name for name in names if name not in LOOK_OF):
        found[name] = others[i % len(others)]
    return {name: found.get(name, LOOSE) for name in in_series(results.points)}


def draw_pair(
    axes: Any, results: Results, gain: str, tax: str, chosen: str, predicted: Predicted | None = None
) -> None:
    """One gain against one tax; the better corner is always at the top right."""
    measures = [results.measures[gain], results.measures[tax]]
    points = [point for point in results.points if {gain, tax} <= point.measured.keys()]
    place = {point.name: _place(point, measures) for point in points}
    best = front(results, (gain, tax))
    axes.plot(*_columns([place[p.name][:2] for p in best]), color=INK, linewidth=5, alpha=0.12, solid_capstyle="round")
    style = looks(results)
    number = {point.name: i for i, point in enumerate(results.points)}
    for name, members in in_series(points).items():
        if name in ("sft", "rlhf"):
            continue
        colour, marker = style[name]
        x, y = _columns([place[p.name][:2] for p in members])
        ends = [place[e.name][:2] for e in points if e.kind in ("sft", "rlhf")]
        for xy, error in zip(zip(x, y, strict=True), (place[p.name][2:] for p in members), strict=True):
            _bars(axes, xy, error, colour)
        if name not in UNORDERED:
            axes.plot(*_columns(_with_ends(list(zip(x, y, strict=True)), members, ends)), color=colour, linewidth=1)
        axes.plot(
            [], [], color=colour, marker=marker, markersize=5, linewidth=0 if name in UNORDERED else 1, label=name
        )
        for point in members:
            (dot,) = axes.plot(
                *place[point.name][:2], color=colour, marker=marker, markersize=5, linestyle="none", zorder=3
            )
            dot.set_gid(f"point-{number[point.name]}")
    for point in points:
        if point.kind in ("sft", "rlhf"):
            x0, y0 = place[point.name][:2]
            _bars(axes, (x0, y0), place[point.name][2:], INK)
            (dot,) = axes.plot(x0, y0, color=INK, marker="X", markersize=8, linestyle="none", zorder=4)
            dot.set_gid(f"point-{number[point.name]}")
            _say(axes, point.kind.upper(), (x0, y0), (5, -13) if point.kind == "sft" else (-9, -4))
    rings = [place[p.name][:2] for p in best]
    axes.plot(
        *_columns(rings), linestyle="none", marker="o", markersize=10, fillstyle="none", color=INK, markeredgewidth=0.8,
        label="on the front",
    )  # fmt: skip
    if (foretold := (predicted or {}).get((gain, tax))) is not None:
        axes.plot(
            foretold[:, 0], foretold[:, 1], color=LOOSE[0], linestyle="--", linewidth=1, label="predicted, not measured"
        )
    if chosen in place:
        x0, y0 = place[chosen][:2]
        axes.plot(x0, y0, linestyle="none", marker="o", markersize=15, fillstyle="none", color=INK, markeredgewidth=1.8)
        _say(axes, f"chosen: {chosen}", (x0, y0), (0, 13), bold=True)
    axes.set_xlabel(label(measures[0]))
    axes.set_ylabel(label(measures[1]))
    for way, measure in ((axes.xaxis, measures[0]), (axes.yaxis, measures[1])):
        if measure.higher is False:
            way.set_inverted(True)
    axes.margins(0.09)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _place(point: Point, measures: Sequence[Measure]) -> tuple[float, float, float, float]:
    """x, y, and the length of their bars to either side."""
    values = [value_of(measure, point.measured[measure.name]) for measure in measures]
    errors = [BAR * standard_error(measure, point.measured[measure.name]) for measure in measures]
    return values[0], values[1], errors[0], errors[1]


def _with_ends(
    line: list[tuple[float, float]], members: Sequence[Point], ends: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Uniform averages begin at SFT and end at RLHF, whether those two were measured once more or not."""
    if len(ends) != 2 or members[0].kind != "uniform":
        return line
    alphas = [member.alpha or 0.0 for member in members]
    return [*([ends[0]] if alphas[0] > 0 else []), *line, *([ends[1]] if alphas[-1] < 1 else [])]


def _columns(places: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [place[0] for place in places], [place[1] for place in places]


def _bars(axes: Any, xy: Sequence[float], error: Sequence[float], colour: str) -> None:
    x, y = xy
    axes.plot([x - error[0], x + error[0]], [y, y], color=colour, linewidth=1, alpha=0.45)
    axes.plot([x, x], [y - error[1], y + error[1]], color=colour, linewidth=1, alpha=0.45)


def _say(axes: Any, text: str, xy: tuple[float, float], offset: tuple[int, int], bold: bool = False) -> None:
    across = "left" if offset[0] > 0 else "right" if offset[0] < 0 else "center"
    weight: Mapping[str, Any] = {"fontweight": "bold"} if bold else {}
    axes.annotate(
        text.replace("$", r"\$"), xy, xytext=offset, textcoords="offset points", ha=across, va="center" if offset[0] else "bottom",
        fontsize=9, color=INK, **weight,
    )  # fmt: skip


def _bytes(figure: Any, kind: str, fonttype: str) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": fonttype}):
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return stream.getvalue()
