"""Random masks that depend on the seed, the tensor's name and the element alone: a hash of its index, not a generator's state."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

from amatax.methods import Chunk

if TYPE_CHECKING:
    import torch

WORD = 1 << 32
NONE = -WORD // 4  # the limit below which no number lies
ODD = 0x9E3779B1  # spreads neighbours
MIX = ((16, 0x21F0AAAD), (15, 0x735A2D97))  # shift and factor of the rounds (Wellons, hash-prospector, two rounds)


def numbers(chunk: Chunk, length: int, seed: int, role: str, device: torch.device) -> torch.Tensor:
    """A uniform number for each element, int32 (length,): from -2^30 to 2^30 - 1.

    Args:
        chunk: where it stands.
        length: its elements.
        seed: of the merge.
        role: each model has numbers of its own.
        device: where they are wanted.
    """
    import torch

    index = chunk.first
    if index // WORD != (index + length - 1) // WORD:  # an index has 32 bits; what is above goes into the keys
        head = WORD - index % WORD
        rest = chunk._replace(first=index + head)
        return torch.cat([numbers(chunk, head, seed, role, device), numbers(rest, length - head, seed, role, device)])
    text = f"{seed}\0{role}\0{chunk.name}\0{index // WORD}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    start, key = (int.from_bytes(half, "little") for half in (digest[:4], digest[4:]))
    found = (_indices(length, device) * _signed(ODD)).add_(_signed(start + index * ODD))
    for (shift, factor), extra in zip(MIX, (key, 0), strict=True):
        found.bitwise_xor_((found >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor))
        if extra:
            found.bitwise_xor_(_signed(extra))
    return found.bitwise_right_shift_(1)  # the upper bits are the good ones


@lru_cache(maxsize=8)
def _indices(length: int, device: torch.device) -> torch.Tensor:
    import torch

    return torch.arange(length, dtype=torch.int32, device=device)


def limit(share: float) -> int:
    """Below it lies this share of the numbers."""
    return round(share * (WORD // 2)) - WORD // 4


def keep(change: torch.Tensor, drawn: torch.Tensor, limits: int | torch.Tensor) -> torch.Tensor:
    """The change, in its own memory, with zeros where the number drawn is not below its limit; NaN stays NaN.

    By arithmetic (the sign of a difference): masks cost torch several times as much.
    """
    return change.mul_(drawn.sub_(limits).bitwise_right_shift_(31).neg_())


def drop(
    sft: torch.Tensor, rlhf: torch.Tensor, chunk: Chunk, density: float, seed: int, *, rescale: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both changes, in their own memory, with each element kept with the probability `density`; else it is zero."""
    for role, change in (("sft", sft), ("rlhf", rlhf)):
        if limit(density) <= NONE:
            change.mul_(0)  # NaN stays NaN, and is seen
            continue
        if density < 1:
            keep(change, numbers(chunk, len(change), seed, role, change.device), limit(density))
        if rescale:
            change.div_(density)
    return sft, rlhf


def _signed(number: int) -> int:
    """The int32 with the same lower 32 bits."""
    return (number + WORD // 2) % WORD - WORD // 2
