"""Pictures: the ratios of a fit with their intervals, and the NLL on the way; the front of several tax-aware fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amatax.errors import MissingExtraError
from amatax.fitting.result import Fit


def draw(found: Fit, path: Path) -> None:
    """Write a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = new_figure(10, 4)
    ratios, path_axes = figure.subplots(1, 2)
    places = range(len(found.values))
    ratios.bar(places, found.values, color="#4c72b0")
    for i, interval in enumerate(found.intervals):
        if interval is not None:
            ratios.plot([i, i], [interval.low, interval.high], color="black", linewidth=1.5)
    ratios.axhline(found.alpha, color="grey", linestyle="--", linewidth=1, label=f"mean {found.alpha:g}")
    ratios.set_xticks(list(places), found.names, rotation=45 if len(found.names) > 6 else 0)
    ratios.set_ylim(0, 1)
    ratios.set_ylabel("share of RLHF (95 % interval)")
    ratios.legend(frameon=False)
    path_axes.plot(
        range(1, len(found.descent.path) + 1),
        found.descent.path,
        marker="o",
        markersize=3,
        color="#4c72b0",
        label="fit",
    )
    path_axes.set_xlabel("evaluation of the last descent")
    if found.own_optimum:
        path_axes.axhline(found.fitted.uniform, color="grey", linestyle="--", linewidth=1, label="uniform")
        path_axes.set_ylabel("NLL, nats per response token (fitted part)")
    else:  # with a tax, a bound or a penalty, which uniform's NLL knows nothing of
        path_axes.set_ylabel("what is minimised, nats per response token (fitted part)")
    path_axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


def draw_front(fits: Sequence[Fit], path: Path) -> None:
    """Write a PNG of several tax-aware fits: NLL on the RLHF data against KL(SFT || merged), beside uniform averages.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = new_figure(6, 4.5)
    axes = figure.subplots()
    for name, look in (("tax-aware", "o-"), ("uniform", "s--"), ("plain", "^:")):
        points = sorted((row.kl, row.nll) for fit in fits for row in fit.tradeoff if row.name == name)
        axes.plot(*zip(*points, strict=True), look, markersize=4, label=name)
    for row in fits[0].tradeoff:
        if row.name in ("sft", "rlhf"):
            axes.plot(row.kl, row.nll, "kx")
            axes.annotate(row.name.upper(), (row.kl, row.nll), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel("KL(SFT || merged) on the kept prompts, nats per response token")
    axes.set_ylabel("NLL on the RLHF data, nats per response token")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


def new_figure(width: float, height: float) -> Any:
    """Empty, in inches, without the state of pyplot.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture needs matplotlib", 'pip install "amatax[fit]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
