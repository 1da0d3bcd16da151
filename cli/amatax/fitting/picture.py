"""A picture of a fit: the ratios with their intervals, and the NLL on the way."""

from __future__ import annotations

from pathlib import Path

from amatax.errors import MissingExtraError
from amatax.fitting.result import Fit


def draw(found: Fit, path: Path) -> None:
    """Write a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture needs matplotlib", 'pip install "amatax[fit]"') from None

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ratios, path_axes = figure.subplots(1, 2)
    places = range(len(found.values))
    ratios.bar(places, found.values, color="#4c72b0")
    for i, interval in enumerate(found.intervals):
        if interval is not None:
            ratios.plot([i, i], [interval.low, interval.high], color="black", linewidth=1.5)
    ratios.axhline(found.alpha, color="grey", linestyle="--", linewidth=1, label=f"uniform, alpha {found.alpha:g}")
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
    path_axes.axhline(found.fitted.uniform, color="grey", linestyle="--", linewidth=1, label="uniform")
    path_axes.set_xlabel("evaluation of the last descent")
    path_axes.set_ylabel("NLL, nats per response token (fitted part)")
    path_axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})
