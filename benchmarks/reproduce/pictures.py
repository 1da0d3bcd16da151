"""The pictures of docs/results.md. Same results, same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amatax.evaluation.fronts import the_point
from amatax.evaluation.picture import BAR, INK, LOOKS
from amatax.evaluation.results import Point
from amatax.evaluation.statistics import standard_error, value_of
from amatax.fitting.picture import new_figure
from benchmarks.reproduce.contrasts import GAIN, TAX
from benchmarks.reproduce.grid import RATIOS
from benchmarks.reproduce.table import Table

FRONTS, SHARES = "results-fronts.png", "results-ratios.png"
PANELS = (
    ("parts", "one part averaged"),
    ("fitted", "AMA"),
    ("tax-aware", "tax-aware fits"),
    ("ties", "TIES"),
    ("dare", "DARE"),
)
DPI = 90


def draw_fronts(table: Table, folder: Path) -> Path:
    """Reward against abilities: a panel for each family of ways, uniform averages in all of them, the mean over seeds and each seed."""
    figure = new_figure(12.6, 7.6)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for place, (family, title) in zip(axes.flat, PANELS, strict=False):
        _line(place, table, "uniform", *LOOKS[0], bars=True)
        ways = [way for way in table.ways if way.startswith(family)]
        for way, look in zip(ways, LOOKS[1:], strict=False):
            _line(place, table, way, *look)
        _models(place, table)
        place.set_title(title, fontsize=11)
        place.legend(frameon=False, fontsize=9, loc="lower left")
        place.label_outer()
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    axes[0, -1].tick_params(labelbottom=True)  # nothing is below it
    last = axes.flat[len(PANELS)]
    last.set_axis_off()
    words = (
        "Reward (across, more is better) against\nabilities (up, more is better).\n\nA line: one way of merging, alpha "
        f"{RATIOS[0]:g} to {RATIOS[-1]:g}\n(uniform 0.1 to 0.9), the mean over seeds.\nFaint: each seed.\nBars: 95 % over samples, "
        "of uniform.\nDashed: the straight line from SFT to RLHF."
    )
    last.text(0.02, 0.95, words, va="top", fontsize=10, color=INK)
    figure.supxlabel(GAIN)
    figure.supylabel(TAX)
    return _save(figure, folder / FRONTS)


def draw_shares(table: Table, folder: Path) -> Path:
    """The fitted ratios by layer, a panel for each alpha: plain above, tax-aware below; each seed a line."""
    measured = [family for family in ("fitted", "tax-aware") if any(way.startswith(family) for way in table.ways)]
    families = measured or ["fitted"]
    figure = new_figure(12.6, 2.8 * len(families))
    axes = figure.subplots(len(families), len(RATIOS), sharex=True, sharey=True, squeeze=False)
    for row, family in zip(axes, families, strict=True):
        ways = [way for way in table.ways if way.startswith(family)]
        for place, ratio in zip(row, RATIOS, strict=True):
            for way, (colour, _) in zip(ways, LOOKS[1:], strict=False):
                for i, seed in enumerate(table.ways[way]):
                    (point,) = table.points(way, seed, [ratio])
                    shares = [value for name, value in point.ratios.items() if name.startswith("blocks.")]
                    ends = np.linspace(0, 1, len(shares) + 1)
                    place.stairs(
                        shares, ends, color=colour, linewidth=1.3, alpha=0.75, label=None if i else way, baseline=None
                    )
            place.axhline(
                ratio, color=LOOKS[0][0], linestyle="--", linewidth=1, label=None if ratio > RATIOS[0] else "uniform"
            )
            place.set_title(f"{family}, alpha {ratio:g}", fontsize=10)
            place.set_ylim(-0.03, 1.03)
            place.set_xticks([0, 1], ["input", "output"])
            for side in ("top", "right"):
                place.spines[side].set_visible(False)
        row[0].legend(frameon=False, fontsize=8, loc="upper center")
    figure.supylabel("share of RLHF")
    return _save(figure, folder / SHARES)


def _line(axes: Any, table: Table, way: str, colour: str, marker: str, bars: bool = False) -> None:
    runs = [_places(table, table.points(way, seed)) for seed in table.ways[way]]
    x, y = np.mean(runs, axis=0).T
    for run in runs if len(runs) > 1 else ():
        axes.plot(*run.T, color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=way)
    if bars:
        for point, across, up in zip(table.points(way, 0), x, y, strict=True):
            dx, dy = (BAR * standard_error(table.results.measures[n], point.measured[n]) for n in (GAIN, TAX))
            axes.plot([across - dx, across + dx], [up, up], color=colour, linewidth=0.8, alpha=0.4)
            axes.plot([across, across], [up - dy, up + dy], color=colour, linewidth=0.8, alpha=0.4)


def _models(axes: Any, table: Table) -> None:
    ends = _places(table, [the_point(table.results, kind) for kind in ("sft", "rlhf")])
    axes.plot(*ends.T, color="#8a8a8a", linestyle="--", linewidth=0.9, zorder=0)
    axes.plot(*ends.T, color=INK, marker="X", markersize=7, linestyle="none", zorder=4)
    for name, place, across in zip(("SFT", "RLHF"), ends, (0, -20), strict=True):
        axes.annotate(name, place, xytext=(across, -12), textcoords="offset points", ha="center", fontsize=9, color=INK)


def _places(table: Table, points: Sequence[Point]) -> Any:
    """(points, 2): reward, abilities."""
    measures = [table.results.measures[name] for name in (GAIN, TAX)]
    return np.array([[value_of(m, point.measured[m.name]) for m in measures] for point in points])


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})
    return path
