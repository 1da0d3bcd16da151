"""Scalar products of SFT and RLHF, or of what they changed, over a whole tensor: they tell the angle between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amatax.methods import Chunks
from amatax.methods._compiled import array, loops
from amatax.methods._magnitudes import deltas

if TYPE_CHECKING:
    import torch


def products(chunks: Chunks, *, changes: bool = False) -> tuple[float, float, float]:
    """sft . rlhf, sft . sft and rlhf . rlhf, in float64: no number of threads shows in them, and no device but in the last bit.

    Args:
        chunks: of `sft` and `rlhf`, and of `base` for changes.
        changes: of what both changed in the base.
    """
    import torch

    roles = ("base", "sft", "rlhf") if changes else ("sft", "rlhf")
    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in chunks():
        if compiled := loops(*(chunk[role] for role in roles)):
            loop = compiled.change_products if changes else compiled.products
            sums += torch.tensor(loop(*(array(chunk[role]) for role in roles)), dtype=torch.float64)
            continue
        both: tuple[torch.Tensor, torch.Tensor] = deltas(chunk) if changes else (chunk["sft"], chunk["rlhf"])
        sft, rlhf = (numbers.double() for numbers in both)
        sums += torch.stack([sft @ rlhf, sft @ sft, rlhf @ rlhf]).cpu()
    dot, one, other = sums.tolist()
    return dot, one, other
