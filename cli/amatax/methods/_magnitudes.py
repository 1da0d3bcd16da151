"""The order of a tensor's elements by magnitude, from histograms of their bits: nothing is sorted, and no buffer grows with it.

Magnitudes are compared in float32, where the order of the numbers is that of their bits. Of equal ones the first comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks

if TYPE_CHECKING:
    import torch

MAGNITUDE = 0x7FFFFFFF  # float32 without its sign
NAN_BINS = 0x7F81  # those from here on hold NaN alone
BINS, LOWER = 1 << 15, 1 << 16  # by the upper bits of a magnitude, and by the rest


class Cut(NamedTuple):
    """Before it in the order are all elements of larger bits, and those of the same bits that stand before `first`."""

    bits: int
    first: int


NOTHING, EVERYTHING = Cut(MAGNITUDE, 0), Cut(0, 1 << 62)


def part(share: float, count: int) -> int:
    """floor(share * count), of the share as it is written: 0.29 of 100 are 29."""
    return floor(Fraction(repr(share)) * count)


def deltas(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What SFT and RLHF changed in the base model."""
    return tensors["sft"] - tensors["base"], tensors["rlhf"] - tensors["base"]


def magnitude(delta: torch.Tensor) -> torch.Tensor:
    """The bits of |delta| in float32, int32 of its shape."""
    import torch

    return delta.to(torch.float32).view(torch.int32).bitwise_and(MAGNITUDE)


def trim(change: torch.Tensor, cut: Cut, first: int) -> torch.Tensor:
    """The change with zeros after a cut; `first` is the index of its first element."""
    import torch

    split = min(max(cut.first - first, 0), len(change))
    if 0 < split < len(change):
        return torch.cat([trim(change[:split], cut, first), trim(change[split:], cut, first + split)])
    least = cut.bits + (split == 0)  # the bits of the smallest that stays
    if change.dtype is torch.float32:  # several times faster than a mask; zero is what is at most the threshold
        below = torch.tensor(max(least, 1) - 1, dtype=torch.int32).view(torch.float32)
        threshold = float(below) if 0 < least < NOTHING.bits else -1.0 if least <= 0 else float("inf")
        return torch.nn.functional.hardshrink(change, threshold)
    return change * (magnitude(change) >= least) if least <= MAGNITUDE else torch.zeros_like(change)


def cuts(chunks: Chunks, ranks_of: Callable[[int], Sequence[int]]) -> list[tuple[Cut, ...]]:
    """For the changes of SFT and of RLHF: the cut after the so many largest, for each of the ranks.

    Args:
        chunks: of `base`, `sft` and `rlhf`; gone through two or three times.
        ranks_of: elements of the tensor -> how many of them stand before each cut.
    """
    import torch

    upper = histograms(chunks)
    found: list[list[Cut]] = [[], []]
    wanted = []  # (of which model, its place in `found`, bin, how many of the bin stand before the cut)
    for model, counts in enumerate(upper):
        ranks = ranks_of(int(counts.sum()))
        counts[NAN_BINS:] = 0  # NaN has no rank, and is never dropped
        above = counts.flip(0).cumsum(0).flip(0)  # elements of this bin and of all larger ones
        total = int(above[0])
        for rank in ranks:
            if 0 < rank < total:
                bin_ = int((above >= rank).sum()) - 1
                wanted.append((model, len(found[model]), bin_, rank - int(above[bin_] - counts[bin_])))
            found[model].append(EVERYTHING if rank >= total else NOTHING)
    if not wanted:
        return [tuple(model) for model in found]

    lower = [torch.zeros(LOWER, dtype=torch.int64) for _ in wanted]
    for chunk in chunks():
        both = [magnitude(delta) for delta in deltas(chunk)]
        for counts, (model, _, bin_, _) in zip(lower, wanted, strict=True):
            inside = (both[model] - (bin_ << 16)).clamp_(-1, LOWER).add_(1)  # what lies outside is counted at the ends
            counts += torch.bincount(inside, minlength=LOWER + 2)[1:-1].cpu()
    ties: list[list[int]] = []  # of which model, its place, bits, how many of the ties stand before the cut
    for counts, (model, place, bin_, rank) in zip(lower, wanted, strict=True):
        above = counts.flip(0).cumsum(0).flip(0)
        low = int((above >= rank).sum()) - 1
        some = rank - int(above[low] - counts[low])
        found[model][place] = Cut(bin_ << 16 | low, EVERYTHING.first)
        if some < int(counts[low]):
            ties.append([model, place, bin_ << 16 | low, some])
    first = 0
    for chunk in chunks() if ties else ():
        both = [magnitude(delta) for delta in deltas(chunk)]
        for tie in ties:
            model, place, bits, some = tie
            if some > 0:
                same = both[model] == bits
                here = int(torch.count_nonzero(same))
                if some <= here:
                    found[model][place] = Cut(bits, first + int(same.nonzero()[some - 1]) + 1)
                tie[3] = some - here
        first += len(both[0])
        if all(tie[3] <= 0 for tie in ties):
            break
    return [tuple(model) for model in found]


def histograms(chunks: Chunks) -> list[torch.Tensor]:
    """How many of the changes of SFT and of RLHF have which upper bits: int64 (BINS,) each."""
    import torch

    found = [torch.zeros(BINS, dtype=torch.int64) for _ in range(2)]
    for chunk in chunks():
        for counts, delta in zip(found, deltas(chunk), strict=True):
            counts += torch.bincount(magnitude(delta) >> 16, minlength=BINS).cpu()
    return found
