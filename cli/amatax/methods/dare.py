"""DARE (arXiv 2311.03099): elements of each change dropped at random, the others rescaled, then task arithmetic."""

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


def dare(
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
    """base + scale * ((1 - ratio) * dropped(sft - base) + ratio * dropped(rlhf - base)).

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        chunk: where this one stands.
        density: the probability of each element to be kept, in each change by itself.
        rescale: divide what is kept by the density, so that the mean over many seeds is the undropped merge.
        scale: of both changes together.
        seed: of the drops; they depend on it, the tensor's name and the element alone.

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    factor = scale * rescaling(density) if rescale else scale
    return merge_dropped(tensors, out, chunk, density, seed, Combining(ratio, factor, elects=False))
