"""The ratios of a merge, layer by layer, as a picture for its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amatax.errors import MissingExtraError
from amatax.planning.ratios import PlannedBlock


def draw_ratios(blocks: Sequence[PlannedBlock], path: Path) -> None:
    """Write a PNG; same blocks, same bytes.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the card's picture needs matplotlib", 'pip install "amatax[fit]"') from error
    figure = Figure(figsize=(7, 2.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    apart = any(block.attention != block.mlp for block in blocks)
    kinds = (("attention", "#4c72b0"), ("mlp", "#dd8452")) if apart else (("attention", "#4c72b0"),)
    width = 0.9 / len(kinds)
    for i, (kind, colour) in enumerate(kinds):
        for block in blocks:
            places = [layer + (i - (len(kinds) - 1) / 2) * width for layer in block.layers]
            label = {"attention": "attention", "mlp": "MLP"}[kind] if block is blocks[0] and apart else None
            axes.bar(places, getattr(block, kind), width, color=colour, label=label)
    axes.set_ylim(
        min(0.0, *(min(b.attention, b.mlp) for b in blocks)), max(1.0, *(max(b.attention, b.mlp) for b in blocks))
    )
    axes.set_xlabel("layer")
    axes.set_ylabel("share of RLHF")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if apart:
        axes.legend(frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})
