"""Model averaging, the merge of AMA (arXiv 2309.06256, Section 4): theta_0 + ratio * (theta - theta_0), theta_0 = SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NEEDS = ("sft", "rlhf")
COPIES = {0.0: "sft", 1.0: "rlhf"}
TAKES_HALF = True
NEAREST = 2.0**-25  # 1 - ratio is 1 in float32 up to here


def average(tensors: Mapping[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """sft - ratio * (sft - rlhf): one subtraction and one fused multiply-add, in float32 for half precision.

    It is written from the nearer model, sft - ratio * (sft - rlhf) or rlhf - (1 - ratio) * (rlhf - sft), so that the factor is
    negative: where both are equal the result is that value, signed zeros included, which sft + ratio * (rlhf - sft) does not
    give (-0.0 + 0.0 is 0.0). torch's lerp does this in one pass, rounding half precision once, at the end.

    Args:
        tensors: `sft` and `rlhf`, chunks of one shape and dtype (floating point), on one device.
        ratio: the share of RLHF; 0 is SFT, 1 is RLHF.
        out: memory for the result; may be that of `rlhf`.

    Returns:
        A tensor of the same shape, dtype and device: `out`, if it was given.
    """
    import torch

    sft, rlhf = tensors["sft"], tensors["rlhf"]
    if ratio in COPIES:
        end = tensors[COPIES[ratio]]
        return end.clone() if out is None else out.copy_(end)
    if NEAREST < ratio <= 0.5:
        return torch.lerp(rlhf, sft, 1 - ratio, out=out)
    if 0.5 < ratio < 1 - NEAREST:
        return torch.lerp(sft, rlhf, ratio, out=out)
    # beyond the models, or nearer to one than float32 tells: lerp's factor would be positive, or zero
    wide = torch.promote_types(sft.dtype, torch.float32)
    near, far, factor = (sft, rlhf, ratio) if ratio >= 0 else (rlhf, sft, 1 - ratio)
    merged = (near.to(wide) - factor * (near.to(wide) - far.to(wide))).to(sft.dtype)
    return merged if out is None else out.copy_(merged)


def slope(tensors: Mapping[str, torch.Tensor], ratio: float) -> torch.Tensor:
    """d average / d ratio: rlhf - sft, which no ratio changes.

    Args:
        tensors: as for `average`.
        ratio: where.
    """
    return tensors["rlhf"] - tensors["sft"]
