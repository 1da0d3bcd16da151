"""Halfway: a method from another package, as the guide in CONTRIBUTING describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Share

if TYPE_CHECKING:
    import torch

NEEDS = ("sft", "rlhf")


def halfway(
    tensors: Mapping[str, torch.Tensor],
    ratio: float,
    out: torch.Tensor | None = None,
    *,
    strength: Share = 0.5,
    words: str = "",
) -> torch.Tensor:
    """sft + strength * ratio * (rlhf - sft); the words are for the card."""
    return tensors["sft"] + strength * ratio * (tensors["rlhf"] - tensors["sft"])
