"""TIES (arXiv 2306.01708): of each change the largest elements, a sign elected for each, and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Chunk, Chunks, Factor, Share
from amatax.methods._combining import Combining
from amatax.methods._magnitudes import NOTHING, Cut, Kept, merge_trimmed, part
from amatax.methods._selection import cuts

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")
WIDENS = True


def prepare(chunks: Chunks, ratio: float, *, density: Share = 0.5) -> list[tuple[Cut, ...]]:
    """Where the floor(density * n) largest elements of each change end."""
    return cuts(chunks, lambda count: [part(density, count)])


def ties(
    tensors: Mapping[str, torch.Tensor],
    ratio: float,
    out: torch.Tensor | None = None,
    *,
    stats: list[tuple[Cut, ...]],
    chunk: Chunk,
    density: Share = 0.5,
    scale: Factor = 1.0,
) -> torch.Tensor:
    """base + scale * the disjoint mean of the trimmed changes of SFT and RLHF.

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF: the changes are weighted by 1 - ratio and ratio.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        stats: what `prepare` found.
        chunk: where this one stands.
        density: the share of the elements of each tensor's change that is kept: the largest; of equal ones the first.
        scale: of the merged change (lambda in the paper).

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    kept = [Kept(NOTHING, bottom) for (bottom,) in stats]
    return merge_trimmed(tensors, out, chunk.first, kept, Combining(ratio, scale, elects=True))
