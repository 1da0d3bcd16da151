"""Where the so many largest elements of a change end: found exactly, nothing is sorted, and no buffer grows with the tensor.

A sample tells nearly where. Then one pass counts what is larger and picks out the few elements in between (the idea is that of
Floyd and Rivest, Communications of the ACM 18, 1975). Where too many are equal for that, histograms of the magnitudes' bits tell, in
two or three passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks
from amatax.methods._magnitudes import EVERYTHING, INFINITE, NOTHING, Cut, deltas, histograms, keep_above, magnitude

if TYPE_CHECKING:
    import torch

EVERY = 61  # of so many elements one is in the sample; prime, so that it meets every row and column
DEVIATIONS = 4  # of the sample's rank: as far as that the cut may lie from where it says
MOST = 1 << 20  # elements that may be picked out
NAN_BINS = 0x7F81  # those from here on hold NaN alone
LOWER = 1 << 16  # bins by the lower bits of a magnitude


class _Wanted(NamedTuple):
    """A cut that lies somewhere in the middle."""

    model: int  # of the changes
    place: int  # among the cuts of that model
    rank: int  # elements before it


def cuts(chunks: Chunks, ranks_of: Callable[[int], Sequence[int]]) -> list[tuple[Cut, ...]]:
    """For the changes of SFT and of RLHF: the cut after the so many largest, for each of the ranks. NaN has no rank.

    Args:
        chunks: of `base`, `sft` and `rlhf`.
        ranks_of: elements of the tensor -> how many of them stand before each cut.
    """
    ranks = ranks_of(chunks.count)
    found = [[EVERYTHING if rank >= chunks.count else NOTHING for rank in ranks] for _ in range(2)]
    wanted = [_Wanted(m, i, rank) for m in range(2) for i, rank in enumerate(ranks) if 0 < rank < chunks.count]
    if wanted:
        cuts_found = _by_sample(chunks, wanted) or _by_bits(chunks, wanted)
        for one, cut in zip(wanted, cuts_found, strict=True):
            found[one.model][one.place] = cut
    return [tuple(model) for model in found]


def _by_sample(chunks: Chunks, wanted: Sequence[_Wanted]) -> list[Cut] | None:
    """The cuts, in one pass; None if the sample misled, too many elements are near a cut, or some are NaN."""
    import torch

    between = _brackets(chunks, wanted)
    if between is None:
        return None
    larger = [0] * len(wanted)
    bits: list[list[torch.Tensor]] = [[] for _ in wanted]
    places: list[list[torch.Tensor]] = [[] for _ in wanted]
    first = 0
    for chunk in chunks():
        changes = [delta.to(torch.float32) for delta in deltas(chunk)]
        for i, (one, (low, high)) in enumerate(zip(wanted, between, strict=True)):
            change = changes[one.model]
            beyond = keep_above(change, high)
            inside = keep_above(change, low - 1).sub_(beyond).view(torch.int32).nonzero()[:, 0]
            larger[i] += int(torch.count_nonzero(beyond.view(torch.int32)))
            bits[i].append(magnitude(change[inside]))
            places[i].append(inside.add_(first))
            if sum(map(len, bits[i])) > MOST:
                return None
        first += len(changes[0])
    found = []
    for one, above, seen, where, (_, high) in zip(
        wanted, larger, map(torch.cat, bits), map(torch.cat, places), between, strict=True
    ):
        rank = one.rank - above
        if not 0 < rank <= len(seen) or int(seen.max()) > high:  # NaN minus NaN is NaN: it is picked out, too
            return None
        threshold = int(seen.kthvalue(len(seen) - rank + 1).values)
        ties = where[seen == threshold]
        some = rank - int(torch.count_nonzero(seen > threshold))
        found.append(Cut(threshold, EVERYTHING.first if some == len(ties) else int(ties[some - 1]) + 1))
    return found


def _brackets(chunks: Chunks, wanted: Sequence[_Wanted]) -> list[tuple[int, int]] | None:
    """Bits between which each cut lies, very likely; None where a sample does not tell or promises too many elements in between."""
    import torch

    if chunks.count <= MOST // EVERY:  # so few that all of them can be picked out
        return [(1, INFINITE)] * len(wanted)
    pieces = [[magnitude(delta) for delta in deltas(chunk)] for chunk in chunks(EVERY)]
    samples = [torch.cat(model) for model in zip(*pieces, strict=True)]
    found = []
    for one in wanted:
        sample, share = samples[one.model], one.rank / chunks.count
        size = len(sample)
        margin = DEVIATIONS * math.sqrt(size * share * (1 - share)) + 1
        middle = size * (1 - share)
        low, high = 1, INFINITE  # beyond the sample's ends there may be more
        if middle - margin >= 1:
            low = int(sample.kthvalue(int(middle - margin)).values)
        if middle + margin <= size:
            high = int(sample.kthvalue(math.ceil(middle + margin)).values)
        expected = int(torch.count_nonzero(sample.clamp(low, high) == sample)) * chunks.count / size
        if low < 1 or expected > MOST * 0.9:
            return None
        found.append((low, high))
    return found


def _by_bits(chunks: Chunks, wanted: Sequence[_Wanted]) -> list[Cut]:
    """The cuts, from histograms of the upper bits and, in those bins that hold one, of the lower bits."""
    import torch

    upper = histograms(chunks)
    for counts in upper:
        counts[NAN_BINS:] = 0  # never dropped
    bins = [_bin(upper[one.model], one.rank) for one in wanted]
    lower = [torch.zeros(LOWER, dtype=torch.int64) for _ in wanted]
    for chunk in chunks():
        both = [magnitude(delta) for delta in deltas(chunk)]
        for counts, one, (bin_, _) in zip(lower, wanted, bins, strict=True):
            inside = (
                (both[one.model] - (bin_ << 16)).clamp_(-1, LOWER).add_(1)
            )  # what lies outside is counted at the ends
            counts += torch.bincount(inside, minlength=LOWER + 2)[1:-1].cpu()
    found = []
    for counts, (bin_, rank) in zip(lower, bins, strict=True):
        low, some = _bin(counts, rank)
        bits = bin_ << 16 | low
        whole = some >= int(counts[low]) or not bits  # of zeros it does not matter which are dropped
        found.append(Cut(bits, EVERYTHING.first if whole else -some))
    return _without_ties(chunks, wanted, found)


def _bin(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """(the bin that holds the so-manieth largest, how many of the bin stand before the cut); the lowest if there are not so many."""
    above = counts.flip(0).cumsum(0).flip(0)  # elements of this bin and of all larger ones
    bin_ = max(int((above >= rank).sum()) - 1, 0)
    return bin_, rank - int(above[bin_] - counts[bin_])


def _without_ties(chunks: Chunks, wanted: Sequence[_Wanted], found: list[Cut]) -> list[Cut]:
    """Cuts among equal elements, of which `-first` stand before it, with the place of the first that does not."""
    import torch

    open_ = [i for i, cut in enumerate(found) if cut.first < 0]
    first = 0
    for chunk in chunks() if open_ else ():
        both = [magnitude(delta) for delta in deltas(chunk)]
        for i in open_:
            bits, some = found[i].bits, -found[i].first
            same = (both[wanted[i].model] - bits).eq(0)
            here = int(torch.count_nonzero(same))
            place = first + int(same.nonzero()[some - 1]) + 1 if some <= here else here - some
            found[i] = Cut(bits, place)
        open_ = [i for i in open_ if found[i].first < 0]
        first += len(both[0])
        if not open_:
            break
    return found
