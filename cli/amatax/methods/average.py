"""Model averaging, the merge of AMA (arXiv 2309.06256, Section 4): theta_0 + ratio * (theta - theta_0), theta_0 = SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NEEDS = ("sft", "rlhf")
COPIES = {0.0: "sft", 1.0: "rlhf"}


def average(
    tensors: Mapping[str, torch.Tensor], ratio: float | torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """sft - ratio * (sft - rlhf), each operation rounded once.

    Where both are equal the result is that value, signed zeros included, which sft + ratio * (rlhf - sft) does not give
    (-0.0 + 0.0 is 0.0). The product and the sum stay two operations: fused, they would differ between devices.

    Args:
        tensors: `sft` and `rlhf`, chunks of one shape and dtype (float32 or float64), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result; may be that of `rlhf`.

    Returns:
        A tensor of the same shape, dtype and device: `out`, if it was given.
    """
    import torch

    change = torch.sub(tensors["sft"], tensors["rlhf"], out=out).mul_(ratio)
    return torch.sub(tensors["sft"], change, out=out)
