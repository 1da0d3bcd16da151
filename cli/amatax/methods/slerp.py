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
SAFE = 1e-20  # squares of float32 numbers below add up to nothing, and above its inverse to infinity
PARALLEL = 0.9995  # of the cosine: above it the arc is a line


class Weights(NamedTuple):
    """Of the two models."""

    sft: float
    rlhf: float


def prepare(chunks: Chunks, ratio: float) -> Weights:
    """The weights, from the angle between the two tensors; where they are parallel, or one is zero: those of the average.

    sin((1 - ratio) * angle) / sin(angle) and sin(ratio * angle) / sin(angle).
    """
    dot, one, other = _products(chunks, wide=False)
    if not (SAFE < one < 1 / SAFE and SAFE < other < 1 / SAFE):
        dot, one, other = _products(chunks, wide=True)
    size = math.sqrt(one) * math.sqrt(other)
    if not 0 < size < math.inf or abs(dot) > PARALLEL * size:
        return Weights(1 - ratio, ratio)
    angle = math.acos(dot / size)
    return Weights(math.sin((1 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle))


def _products(chunks: Chunks, *, wide: bool) -> tuple[float, float, float]:
    """sft . rlhf, sft . sft and rlhf . rlhf: float32 within a chunk, which tells the weights to their last bit or so, or float64."""
    import torch

    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in chunks():
        sft, rlhf = (chunk[role].double() if wide else chunk[role] for role in NEEDS)
        sums += torch.stack([sft @ rlhf, sft @ sft, rlhf @ rlhf]).double().cpu()
    dot, one, other = sums.tolist()
    return dot, one, other


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
