"""Spherical interpolation from SFT to RLHF (Shoemake 1985), each tensor taken as one vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks
from amatax.methods._products import products
from amatax.methods.average import average

if TYPE_CHECKING:
    import torch

NEEDS = ("sft", "rlhf")
COPIES = {0.0: "sft", 1.0: "rlhf"}
TAKES_HALF = WIDENS = True
PARALLEL = 0.9995  # of the cosine: above it the arc is a line
SURE = 0.9  # of the bound for what is parallel: |rlhf| is taken for |sft| (3 %), and norms of 2^18 elements in bfloat16 are right to 5 %
LEAST = 1e-20  # of a sum of squares: below it those that float32 takes for zero may count


class Weights(NamedTuple):
    """Of the two models."""

    sft: float
    rlhf: float


def presume() -> tuple[None, Callable[[Mapping[str, torch.Tensor], torch.Tensor], bool]]:
    """What `prepare` finds of tensors that are parallel, and what says whether they are, beyond doubt, up to this chunk.

    The cosine is 1 - |rlhf - sft|^2 / (2 |sft| |rlhf|) or more. Nearly all tensors of models that were trained from one another are.
    """
    import torch

    exact = (torch.bfloat16, torch.float32, torch.float64)  # others have no norms, or round small ones by more
    norm = torch.linalg.vector_norm
    bound = SURE * 2 * (1 - PARALLEL)
    changes = squares = 0.0  # |rlhf - sft|^2, and |sft|^2 or less

    def parallel(chunk: Mapping[str, torch.Tensor], out: torch.Tensor) -> bool:
        nonlocal changes, squares
        sft, rlhf = (x if x.dtype in exact else x.float() for x in (chunk[role] for role in NEEDS))
        memory = out if out.dtype is torch.promote_types(sft.dtype, rlhf.dtype) else None
        change = float(norm(torch.sub(rlhf, sft, out=memory)))
        changes += change * change
        if not changes < bound * squares:  # what it says already may be enough
            length = float(norm(sft))
            squares += length * length
        return changes < bound * squares and LEAST < squares < math.inf

    return None, parallel


def prepare(chunks: Chunks, ratio: float) -> Weights | None:
    """The weights, from the angle between the two tensors; None where they are parallel, or one is zero: it is the average there.

    sin((1 - ratio) * angle) / sin(angle) and sin(ratio * angle) / sin(angle).
    """
    dot, one, other = products(chunks)
    size = math.sqrt(one) * math.sqrt(other)
    if not 0 < size < math.inf or abs(dot) > PARALLEL * size:
        return None
    angle = math.acos(dot / size)
    return Weights(math.sin((1 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle))


def slerp(
    tensors: Mapping[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None, *, stats: Weights | None
) -> torch.Tensor:
    """Along the arc between both tensors: where they are equally long, the angle to SFT is `ratio` of the angle between them.

    Args:
        tensors: `sft` and `rlhf`, chunks of one shape, on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result; may be that of `rlhf`.
        stats: what `prepare` found.

    Returns:
        A tensor of the same shape, dtype and device.
    """
    import torch

    if stats is None:
        return average(tensors, ratio, out)
    wide = torch.promote_types(tensors["sft"].dtype, torch.float32)
    sft, rlhf = (tensors[role].to(wide) for role in NEEDS)
    memory = out if out is not None and out.dtype == wide else None
    return torch.mul(rlhf, stats.rlhf, out=memory).add_(sft * stats.sft)
