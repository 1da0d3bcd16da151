"""Model Breadcrumbs (arXiv 2312.06795): of each change neither the largest elements nor the smallest, then task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Chunk, Chunks, Factor, Share
from amatax.methods._combining import Combining
from amatax.methods._magnitudes import Cut, Kept, merge_trimmed, part
from amatax.methods._selection import cuts

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")
WIDENS = True


def prepare(chunks: Chunks, ratio: float, *, density: Share = 0.9, gamma: Share = 0.01) -> list[tuple[Cut, ...]]:
    """Where the floor(gamma * n) largest elements of each change end, and the floor(density * n) after them."""

    def ranks(count: int) -> list[int]:
        top = min(part(gamma, count), count - part(density, count))
        return [top, top + part(density, count)]

    return cuts(chunks, ranks)


def breadcrumbs(
    tensors: Mapping[str, torch.Tensor],
    ratio: float,
    out: torch.Tensor | None = None,
    *,
    stats: list[tuple[Cut, ...]],
    chunk: Chunk,
    density: Share = 0.9,
    gamma: Share = 0.01,
    scale: Factor = 1.0,
) -> torch.Tensor:
    """base + scale * ((1 - ratio) * masked(sft - base) + ratio * masked(rlhf - base)).

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        stats: what `prepare` found.
        chunk: where this one stands.
        density: the share of the elements of each tensor's change that is kept.
        gamma: the share that is dropped at the upper end; the rest is dropped at the lower end. Where density and gamma are more
            than 1 together, less is dropped at the upper end.
        scale: of both changes together.

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    kept = [Kept(top, bottom) for top, bottom in stats]
    return merge_trimmed(tensors, out, chunk.first, kept, Combining(ratio, scale, elects=False))
