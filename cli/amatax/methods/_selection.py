"""Where the so many largest elements of a change end: found exactly, nothing is sorted, and no buffer grows with the tensor.

A sample tells nearly where. Then one pass counts what is larger and picks out the few elements in between (the idea is that of
Floyd and Rivest, Communications of the ACM 18, 1975); equal elements, which half precision has many of, are counted block by block.
Where even so there are too many, histograms of the magnitudes' bits tell, in two or three passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunks
from amatax.methods._compiled import array, in_order, loops
from amatax.methods._magnitudes import (
    EVERYTHING,
    INFINITE,
    NOTHING,
    Cut,
    delta,
    deltas,
    histograms,
    keep_above,
    magnitude,
    size,
)

if TYPE_CHECKING:
    import torch

MODELS = ("sft", "rlhf")
EVERY = (31, 61, 127, 251)  # of so many elements one is in the sample; primes: it meets every row and column
ALIKE = 256  # neighbours in a sample that may be alike
DEVIATIONS = 4  # of the sample's rank: as far as that the cut may lie from where it says
MANY = 1e-3  # the share of equal elements from which on they are counted and not picked out
MOST = 1 << 21  # elements that may be picked out
LEAST = 1 << 14  # for which there is room at once
LARGEST = 1 << 30  # elements of a tensor that is sampled: of a larger one the sample would be, too
NAN_BINS = 0x7F81  # those from here on hold NaN alone
LOWER = 1 << 16  # bins by the lower bits of a magnitude


class _Wanted(NamedTuple):
    """A cut that lies somewhere in the middle."""

    model: int  # of MODELS
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


class _Bracket(NamedTuple):
    """Bits between which a cut lies, both included; so many elements may have those at an end that they are counted, not picked out."""

    low: int
    high: int
    many_low: bool
    many_high: bool


class _Tally:
    """Of one change: how many elements are above a bracket, how many at its ends, and the few in between."""

    def __init__(self, wanted: _Wanted, bracket: _Bracket) -> None:
        import torch

        self.wanted, self.bracket = wanted, bracket
        self.above = self.high = self.between = self.low = 0
        self.sizes = torch.empty(0)  # of those in between, float32, with room for more
        self.where = torch.empty(0, dtype=torch.int64)  # their places
        self.blocks: list[tuple[int, int, int]] = []  # (first element, how many are at the high end, at the low end)

    def add(self, base: torch.Tensor, model: torch.Tensor, first: int) -> bool:
        """Count the next elements, of which the first is element `first` of the tensor; False if one is not finite."""
        low, high, many_low, many_high = self.bracket
        above, at_high, inside, at_low, finite = self._survey(base, model, first)
        if finite < len(base):
            return False
        if low == high:
            inside = at_low = 0
        if not many_high:  # then those are picked out as well
            at_high, inside = 0, inside + at_high
        if not many_low and low < high:
            at_low, inside = 0, inside + at_low
        self.above, self.high, self.between, self.low = (
            a + b
            for a, b in zip(
                (self.above, self.high, self.between, self.low), (above, at_high, inside, at_low), strict=True
            )
        )
        self.blocks.append((first, at_high, at_low))
        return True

    def _survey(self, base: torch.Tensor, model: torch.Tensor, first: int) -> tuple[int, int, int, int, int]:
        """How many are above the bracket, at its high end, between its ends, at its low end, and finite; those in question are picked out."""
        compiled = loops(base, model)
        if compiled is None:
            return self._by_torch(base, model, first)
        low, high, many_low, many_high = self.bracket
        ends = [size(bits) for bits in (low, high, low + many_low, high - many_high)]
        while True:
            *counts, end = compiled.survey(
                *map(array, (base, model)), *ends, first, *map(array, (self.sizes, self.where)), self.between
            )
            if end <= len(self.where) or end > MOST:
                return tuple(counts)
            self._make_room(end - self.between, base.device)

    def _by_torch(self, base: torch.Tensor, model: torch.Tensor, first: int) -> tuple[int, int, int, int, int]:
        """The same by torch's operations."""
        import torch

        low, high, many_low, many_high = self.bracket
        change = delta(base, model).to(torch.float32)
        from_high, from_low = (_nonzero(keep_above(change, end - 1)) if end else len(change) for end in (high, low))
        above, beyond_low = _nonzero(keep_above(change, high)), _nonzero(keep_above(change, low))
        low, high = low + many_low, high - many_high
        if low <= high:
            some = keep_above(change, low - 1).sub_(keep_above(change, high))
            places = some.view(torch.int32).nonzero()[:, 0]
            end = self.between + len(places)
            if end <= MOST:
                self._make_room(len(places), base.device)
                self.sizes[self.between : end] = change[places].abs_()
                self.where[self.between : end] = places.add_(first)
        finite = len(change) if math.isfinite(float(change.sum())) else 0
        return above, from_high - above, beyond_low - from_high, from_low - beyond_low, finite

    def _make_room(self, count: int, device: torch.device) -> None:
        """For so many more that are picked out: in one piece, since many small ones between a kernel's large ones would tear the heap."""
        end = self.between + count
        if end > len(self.where):
            self.sizes, self.where = (_longer(x, max(LEAST, 2 * end), device) for x in (self.sizes, self.where))

    def cut(self, chunks: Chunks) -> Cut | None:
        """Where it is; None if it is not in the bracket."""
        import torch

        rank = self.wanted.rank - self.above
        if 0 < rank <= self.high:
            return self._among_equals(chunks, self.bracket.high, rank, 1)
        rank -= self.high
        if 0 < rank <= self.between:
            sizes, where = self.sizes[: self.between], self.where[: self.between]
            threshold = sizes.kthvalue(len(sizes) - rank + 1).values
            ties = where[sizes == threshold]
            some = rank - int(torch.count_nonzero(sizes > threshold))
            bits = int(threshold.view(torch.int32))
            return Cut(bits, EVERYTHING.first if some == len(ties) else int(ties[some - 1]) + 1)
        rank -= self.between
        return self._among_equals(chunks, self.bracket.low, rank, 2) if 0 < rank <= self.low else None

    def _among_equals(self, chunks: Chunks, bits: int, rank: int, column: int) -> Cut:
        """The cut after the first so many elements that have these bits; the block that holds it is read again."""
        if not bits or rank == sum(block[column] for block in self.blocks):  # which zeros go does not matter
            return Cut(bits, EVERYTHING.first)
        for block in self.blocks:
            if rank <= block[column]:
                break
            rank -= block[column]
        chunk = next(chunks(first=block[0]))
        base, model = chunk["base"], chunk[MODELS[self.wanted.model]]
        if compiled := loops(base, model):
            place = compiled.find(array(base), array(model), size(bits), rank)
            assert place < len(base), "the tensor has changed between two readings"
        else:
            place = int((magnitude(delta(base, model)) == bits).nonzero()[rank - 1])
        return Cut(bits, block[0] + place + 1)


def _longer(old: torch.Tensor, length: int, device: torch.device) -> torch.Tensor:
    """The same numbers in more memory."""
    import torch

    new = torch.empty(length, dtype=old.dtype, device=device)
    new[: len(old)] = old
    return new


def _by_sample(chunks: Chunks, wanted: Sequence[_Wanted]) -> list[Cut] | None:
    """The cuts, in one pass; None if the sample misled, too many elements are near a cut, or some are not finite."""
    brackets = _brackets(chunks, wanted)
    if brackets is None:
        return None
    tallies, first = [_Tally(*pair) for pair in zip(wanted, brackets, strict=True)], 0
    for chunk in chunks():
        for tally in tallies:
            finite = tally.add(chunk["base"], chunk[MODELS[tally.wanted.model]], first)
            if not finite or tally.between > MOST:
                return None
        first += len(chunk["base"])
    found = [tally.cut(chunks) for tally in tallies]
    return None if None in found else [cut for cut in found if cut is not None]


def _brackets(chunks: Chunks, wanted: Sequence[_Wanted]) -> list[_Bracket] | None:
    """Where each cut lies, very likely; None if a sample promises too many elements there."""
    import torch

    if chunks.count > LARGEST:
        return None
    # so that the sample is as dear as the picking out that it saves
    every = next((prime for prime in reversed(EVERY) if prime**3 <= chunks.count), 0)
    if not every:  # so few that all of them can be picked out
        return [_Bracket(0, INFINITE, True, False)] * len(wanted)
    pieces = [[magnitude(delta) for delta in deltas(chunk)] for chunk in chunks(every)]
    drawn_as_is = [torch.cat(model) for model in zip(*pieces, strict=True)]
    samples = [in_order(sample, chunks.count) for sample in drawn_as_is]
    found = []
    for one in wanted:
        sample, share = samples[one.model], one.rank / chunks.count
        drawn = len(sample)
        deviation = _deviation(drawn_as_is[one.model], int(sample[min(int(drawn * (1 - share)), drawn - 1)]))
        margin = DEVIATIONS * max(math.sqrt(drawn * share * (1 - share)), deviation) + 1
        begin, end = math.floor(drawn * (1 - share) - margin), math.ceil(drawn * (1 - share) + margin)
        low = int(sample[begin]) if begin >= 0 else 0  # beyond the sample's ends there may be more
        high = int(sample[end]) if end < drawn else INFINITE
        equal = [_count(sample, bits, bits) / drawn for bits in (low, high)]
        many_low, many_high = (share > MANY or not bits for share, bits in zip(equal, (low, high), strict=True))
        inside = _count(sample, low + many_low, high - many_high)
        if inside * chunks.count / drawn > MOST * 0.9:
            return None
        found.append(_Bracket(low, high, many_low, many_high))
    return found


def _deviation(sample: torch.Tensor, bits: int) -> float:
    """The standard deviation of how many in a sample are larger, where neighbours are alike: from one row of so many to the next."""
    import torch

    rows = (sample[: len(sample) // ALIKE * ALIKE].view(-1, ALIKE) > bits).sum(1, dtype=torch.float32)
    return float(rows.std()) * math.sqrt(len(rows)) if len(rows) > 1 else 0.0


def _count(ordered: torch.Tensor, low: int, high: int) -> int:
    """How many lie between two numbers, both included."""
    import torch

    begin = int(torch.searchsorted(ordered, low))
    return max(0, int(torch.searchsorted(ordered, high, right=True)) - begin)


def _nonzero(change: torch.Tensor) -> int:
    """How many are not zero; as whole numbers they are counted faster."""
    import torch

    return int(torch.count_nonzero(change.view(torch.int32)))


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
