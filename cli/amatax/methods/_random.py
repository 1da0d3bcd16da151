"""Random masks that depend on the seed, the tensor's name and the element alone: a hash of its index, not a generator's state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from amatax.methods import Chunk

if TYPE_CHECKING:
    import torch

WORD = 1 << 32
ODD = 0x9E3779B1  # spreads neighbours
MIX = ((16, 0x21F0AAAD), (15, 0x735A2D97))  # shift and factor of the rounds (Wellons, hash-prospector, two rounds)


def words(chunk: Chunk, length: int, seed: int, role: str, like: torch.Tensor) -> torch.Tensor:
    """A uniform number for each element, int32 (length,) from -2^31: its upper bits are the good ones.

    Args:
        chunk: where it stands.
        length: its elements.
        seed: of the merge.
        role: each model has numbers of its own.
        like: a tensor of the device.
    """
    import torch

    index = chunk.first
    if index // WORD != (index + length - 1) // WORD:  # an index has 32 bits; what is above goes into the keys
        head = WORD - index % WORD
        rest = chunk._replace(first=index + head)
        return torch.cat([words(chunk, head, seed, role, like), words(rest, length - head, seed, role, like)])
    text = f"{seed}\0{role}\0{chunk.name}\0{index // WORD}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    start, key = (int.from_bytes(half, "little") for half in (digest[:4], digest[4:]))
    numbers = torch.arange(length, dtype=torch.int32, device=like.device)
    numbers.mul_(_signed(ODD)).add_(_signed(start + index * ODD))
    for (shift, factor), extra in zip(MIX, (key, 0), strict=True):
        numbers.bitwise_xor_((numbers >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor))
        if extra:
            numbers.bitwise_xor_(_signed(extra))
    return numbers


def drop(
    sft: torch.Tensor, rlhf: torch.Tensor, chunk: Chunk, density: float, seed: int, *, rescale: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both changes, in their own memory, with each element kept with the probability `density`; else it is zero."""
    for role, change in (("sft", sft), ("rlhf", rlhf)):
        if not density:
            change.zero_()
        elif density < 1:
            change.mul_(words(chunk, len(change), seed, role, change) <= round(density * WORD) - WORD // 2 - 1)
            if rescale:
                change.div_(density)
    return sft, rlhf


def _signed(number: int) -> int:
    """The int32 with the same lower 32 bits."""
    return (number + WORD // 2) % WORD - WORD // 2
