"""The changes of SFT and RLHF by magnitude: what is cut off, and how many have which bits.

Magnitudes are compared in float32, where the order of the numbers is that of their bits. Of equal ones the first comes first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks
from amatax.methods._combining import Combining, combined, in_one_pass
from amatax.methods._compiled import array, loops

if TYPE_CHECKING:
    import torch

MAGNITUDE = 0x7FFFFFFF  # float32 without its sign
INFINITE = 0x7F800000  # the bits of infinity
BINS = 1 << 15  # by the upper 16 bits of a magnitude


class Cut(NamedTuple):
    """Before it in the order are all elements of larger bits, and those of the same bits that stand before `first`."""

    bits: int
    first: int


class Kept(NamedTuple):
    """What is kept of a change: all after the one cut and before the other."""

    top: Cut
    bottom: Cut


NOTHING, EVERYTHING = Cut(MAGNITUDE, 0), Cut(0, 1 << 62)


def part(share: float, count: int) -> int:
    """floor(share * count), of the share as it is written: 0.29 of 100 are 29."""
    return floor(Fraction(repr(share)) * count)


def deltas(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What SFT and RLHF changed in the base model, in float32 or wider."""
    return delta(tensors["base"], tensors["sft"]), delta(tensors["base"], tensors["rlhf"])


def delta(base: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """What a model changed, in float32 or wider."""
    import torch

    wide = torch.promote_types(base.dtype, torch.float32)
    if base.dtype is not wide and (compiled := loops(base, model)):
        out = base.new_empty(len(base), dtype=wide)
        compiled.change(*map(array, (base, model, out)))
        return out
    return model.to(wide) - base.to(wide)


def magnitude(delta: torch.Tensor) -> torch.Tensor:
    """The bits of |delta| in float32, int32 of its shape."""
    import torch

    return delta.to(torch.float32).view(torch.int32).bitwise_and(MAGNITUDE)


def keep_above(change: torch.Tensor, bits: int) -> torch.Tensor:
    """The change, float32, with zeros for magnitudes of at most these bits (-1: of none); NaN stays. Several times faster than a mask."""
    import torch

    return torch.nn.functional.hardshrink(change, size(bits) if bits >= 0 else -1.0)


def trim(change: torch.Tensor, cut: Cut, first: int) -> torch.Tensor:
    """The change with zeros after a cut; `first` is the index of its first element."""
    import torch

    split = min(max(cut.first - first, 0), len(change))
    if 0 < split < len(change):
        return torch.cat([trim(change[:split], cut, first), trim(change[split:], cut, first + split)])
    most = min(cut.bits - (split > 0), INFINITE)  # the bits of the largest that goes; NaN stays, and is seen
    if change.dtype is torch.float32:
        return keep_above(change, most)
    return change.masked_fill(magnitude(change) <= most, 0)


def merge_trimmed(
    tensors: Mapping[str, torch.Tensor], out: torch.Tensor | None, first: int, kept: Sequence[Kept], how: Combining
) -> torch.Tensor:
    """What comes of both changes without what lies outside two cuts.

    Args:
        tensors: `base`, `sft` and `rlhf`.
        out: memory that the result may use.
        first: the index of the first element.
        kept: what is kept of SFT's change and of RLHF's.
        how: they are combined.
    """
    ends = [(size(bottom.bits), bottom.first, size(top.bits), top.first) for top, bottom in kept]
    merged = in_one_pass("trimmed", tensors, out, how, first, *ends)
    if merged is not None:
        return merged
    sft, rlhf = (trimmed(change, first, cut) for change, cut in zip(deltas(tensors), kept, strict=True))
    return combined(sft, rlhf, tensors["base"], how)


def trimmed(change: torch.Tensor, first: int, kept: Kept) -> torch.Tensor:
    """The change with zeros outside two cuts; `first` is the index of its first element."""
    within = trim(change, kept.bottom, first)
    return within if kept.top == NOTHING else within.sub_(trim(change, kept.top, first))


@lru_cache(maxsize=64)
def size(bits: int) -> float:
    """The magnitude that has these bits; infinity for those of NaN."""
    return float(struct.unpack("<f", struct.pack("<i", min(bits, INFINITE)))[0])


def histograms(chunks: Chunks) -> list[torch.Tensor]:
    """How many of the changes of SFT and of RLHF have which upper bits: int64 (BINS,) each."""
    import torch

    found = [torch.zeros(BINS, dtype=torch.int64) for _ in range(2)]
    for chunk in chunks():
        for counts, role in zip(found, ("sft", "rlhf"), strict=True):
            if compiled := loops(chunk["base"], chunk[role]):
                compiled.tally(*map(array, (chunk["base"], chunk[role], counts)))
                continue
            change = delta(chunk["base"], chunk[role])
            counts += torch.bincount(magnitude(change) >> 16, minlength=BINS).cpu()
    return found
