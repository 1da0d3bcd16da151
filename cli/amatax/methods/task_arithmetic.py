"""Task arithmetic (arXiv 2212.04089): the base model plus what SFT and RLHF changed in it, each by its share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Factor
from amatax.methods.average import average

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")


def same_as(*, scale: float) -> str | None:
    """The average, where the base makes no difference."""
    return "average" if scale == 1 else None


def task_arithmetic(
    tensors: Mapping[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None, *, scale: Factor = 1.0
) -> torch.Tensor:
    """base + scale * ((1 - ratio) * (sft - base) + ratio * (rlhf - base)).

    With scale 1 it is the average of SFT and RLHF, whatever the base; with less the model stays nearer to the base. It is computed that
    way: from the base to the average by the scale.

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (float32 or float64), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result; may be that of `rlhf`.
        scale: of both changes together (lambda in the paper).

    Returns:
        A tensor of the same shape, dtype and device.
    """
    import torch

    merged = average(tensors, ratio, out)
    return torch.lerp(tensors["base"], merged, scale, out=out)
