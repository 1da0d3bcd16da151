"""DARE (arXiv 2311.03099) with the sign election of TIES: elements dropped at random, and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Chunk, Factor, Flag, Seed, Share
from amatax.methods._consensus import agreed
from amatax.methods._magnitudes import deltas
from amatax.methods._random import drop, rescaling

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
        out: ignored.
        chunk: where this one stands.
        density: the probability of each element to be kept, in each change by itself.
        rescale: divide what is kept by the density.
        scale: of the merged change.
        seed: of the drops; they are those of `dare`.

    Returns:
        A tensor of the same shape and device, in float32 or wider.
    """
    changes = drop(*deltas(tensors), chunk, density, seed)
    factor = scale * rescaling(density) if rescale else scale
    return agreed(*changes, ratio, tensors["base"], factor)
