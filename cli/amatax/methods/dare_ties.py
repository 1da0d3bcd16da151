"""DARE (arXiv 2311.03099) with the sign election of TIES: elements dropped at random, and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Chunk, Factor, Flag, Seed, Share
from amatax.methods._combining import Combining
from amatax.methods._random import merge_dropped, rescaling

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")
WIDENS = True


def dare_ties(
    tensors: Mapping[str, torch.Tensor],
    ratio: float,
    out: torch.Tensor | None = None,
    *,
    chunk: Chunk,
    density: Share = 0.5,
    rescale: Flag = True,
    scale: Factor = 1.0,
    seed: Seed = 0,
) -> torch.Tensor:
    """base + scale * the disjoint mean of the changes of SFT and RLHF, each dropped at random.

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF: the changes are weighted by 1 - ratio and ratio.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        chunk: where this one stands.
        density: the probability of each element to be kept, in each change by itself.
        rescale: divide what is kept by the density.
        scale: of the merged change.
        seed: of the drops; they are those of `dare`.

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    factor = scale * rescaling(density) if rescale else scale
    return merge_dropped(tensors, out, chunk, density, seed, Combining(ratio, factor, elects=True))
