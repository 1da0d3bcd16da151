"""Spherical interpolation from SFT to RLHF (Shoemake 1985), each tensor taken as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks

if TYPE_CHECKING:
    import torch

NEEDS = ("sft", "rlhf")
COPIES = {0.0: "sft", 1.0: "rlhf"}
PARALLEL = 0.9995  # of the cosine: above it the arc is a line


class Weights(NamedTuple):
    """Of the two models."""

    sft: float
    rlhf: float


def prepare(chunks: Chunks, ratio: float) -> Weights:
    """The weights, from the angle between the two tensors; where they are parallel, or one is zero: those of the average.

    sin((1 - ratio) * angle) / sin(angle) and sin(ratio * angle) / sin(angle).
    """
    import torch

    products = torch.zeros(3, dtype=torch.float64)
    for chunk in chunks():
        sft, rlhf = chunk["sft"].double(), chunk["rlhf"].double()
        products += torch.stack([sft @ rlhf, sft @ sft, rlhf @ rlhf]).cpu()
    dot, one, other = products.tolist()
    size = math.sqrt(one) * math.sqrt(other)
    if not 0 < size < math.inf or abs(dot) > PARALLEL * size:
        return Weights(1 - ratio, ratio)
    angle = math.acos(dot / size)
    return Weights(math.sin((1 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle))


def slerp(
    tensors: Mapping[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None, *, stats: Weights
) -> torch.Tensor:
    """Along the arc between both tensors: where they are equally long, the angle to SFT is `ratio` of the angle between them.

    Args:
        tensors: `sft` and `rlhf`, chunks of one shape and dtype (float32 or float64), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result; may be that of `rlhf`.
        stats: what `prepare` found.

    Returns:
        A tensor of the same shape, dtype and device.
    """
    import torch

    return torch.mul(tensors["rlhf"], stats.rlhf, out=out).add_(tensors["sft"] * stats.sft)
