"""Random masks that depend on the seed, the tensor's name and the element alone: a hash of its index, not a generator's state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from amatax.methods import Chunk
from amatax.methods._combining import Combining, combined, in_one_pass
from amatax.methods._magnitudes import deltas

if TYPE_CHECKING:
    import torch

WORD = 1 << 32
NONE = -WORD // 4  # the limit below which no number lies
ODD = 0x9E3779B1  # spreads neighbours
MIX = (
    (16, 0x21F0AAAD),
    (15, 0x735A2D97),
    (15, 0x31848BAB),
)  # shift and factor of the rounds (Wellons, hash-prospector)


def numbers(chunk: Chunk, length: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two uniform numbers for each element, one for SFT's change and one for RLHF's: int32 (length,), from -2^30 to 2^30 - 1.

    Args:
        chunk: where it stands.
        length: its elements.
        seed: of the merge.
        device: where they are wanted.
    """
    import torch

    found = [_numbers(*piece, device) for piece in pieces(chunk, length, seed)]
    return found[0] if len(found) == 1 else (torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]))


def pieces(chunk: Chunk, length: int, seed: int) -> list[tuple[int, int, int]]:
    """(elements, where their hash begins, its key), for parts of a chunk: an index has 32 bits, and what is above goes into the key."""
    found, index, end = [], chunk.first, chunk.first + length
    while index < end:
        high = index // WORD
        digest = hashlib.blake2b(f"{seed}\0{chunk.name}\0{high}".encode(), digest_size=8).digest()
        start, key = (int.from_bytes(half, "little") for half in (digest[:4], digest[4:]))
        count = min(end, (high + 1) * WORD) - index
        found.append((count, (start + index * ODD) % WORD, key))
        index += count
    return found


def _numbers(length: int, start: int, key: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a piece. What `amatax.methods._loops.numbers` does for one element."""
    import torch

    state = (_indices(length, device) * _word(ODD)).add_(torch.tensor(_signed(start), dtype=torch.int32))
    other = torch.empty_like(state)
    _mix(state, other, *MIX[0]).bitwise_xor_(torch.tensor(_signed(key), dtype=torch.int32))
    _mix(state, other, *MIX[1])
    sft = state >> _word(1)  # the upper bits are the good ones
    return sft, _mix(state, other, *MIX[2]).bitwise_right_shift_(_word(1))


def _mix(state: torch.Tensor, other: torch.Tensor, shift: int, factor: int) -> torch.Tensor:
    """One round: the upper bits into the lower ones, then a product. In place; `other` is memory of the same shape."""
    import torch

    torch.bitwise_right_shift(state, _word(shift), out=other).bitwise_and_(_word((1 << (32 - shift)) - 1))
    return state.bitwise_xor_(other).mul_(_word(factor))


@lru_cache(maxsize=32)
def _word(number: int) -> torch.Tensor:
    """A whole number as torch wants it: it would make one of a Python int each time."""
    import torch

    return torch.tensor(_signed(number), dtype=torch.int32)


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
    limits = _word(limits) if isinstance(limits, int) else limits
    return change.mul_(drawn.sub_(limits).bitwise_right_shift_(_word(31)).neg_())


def merge_dropped(
    tensors: Mapping[str, torch.Tensor],
    out: torch.Tensor | None,
    chunk: Chunk,
    density: float,
    seed: int,
    how: Combining,
) -> torch.Tensor:
    """What comes of both changes when each element is kept with a probability.

    Args:
        tensors: `base`, `sft` and `rlhf`.
        out: memory that the result may use.
        chunk: where they stand.
        density: the probability.
        seed: of the drops.
        how: they are combined.
    """
    (_, start, key), *others = pieces(chunk, len(tensors["base"]), seed)
    if not others:
        merged = in_one_pass("dropped", tensors, out, how, start, key, limit(density))
        if merged is not None:
            return merged
    return combined(*drop(*deltas(tensors), chunk, density, seed), tensors["base"], how)


def drop(
    sft: torch.Tensor, rlhf: torch.Tensor, chunk: Chunk, density: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both changes, in their own memory, with each element kept with the probability `density`; else it is zero."""
    for change, drawn in zip((sft, rlhf), numbers(chunk, len(sft), seed, sft.device), strict=True):
        keep(change, drawn, limit(density))
    return sft, rlhf


def rescaling(density: float) -> float:
    """By what is multiplied what is kept with this probability, so that the mean stays."""
    return 1 / density if limit(density) > NONE else 0.0


def _signed(number: int) -> int:
    """The int32 with the same lower 32 bits."""
    return (number + WORD // 2) % WORD - WORD // 2
