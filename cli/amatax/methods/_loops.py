"""What kernels do with every element, in one compiled loop: for tensors on the CPU, where there is numba.

torch goes through memory once for each operation, and a dozen of them take several times as long as the loop. The results are the same,
bit for bit: each rounding is torch's own, and no product is fused with a sum. (Products are summed up in another order.)

All of them are in this file, and constants that stand elsewhere too: numba keeps what it has compiled until this file changes, and knows of no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic, overload
from numpy import empty, float32, float64, inf, int32, uint16, uint32, uint64, zeros

MAGNITUDE = int32(0x7FFFFFFF)  # float32 without its sign
WORD = 64  # bits of one
STEP = 1 << 11  # elements of which both changes stay in a core's first cache
TINY = 2.0**-125  # amatax.methods._combining.TINY
NAN = uint32(0x7FC00000)  # bits that make any float32 one
LANES = 256  # enough that the checks before a loop of them cost little
How = tuple[bool, float, float, float]  # are signs elected, both changes' weights, the scale of their mean


def compiled(function: Callable[..., Any]) -> Any:
    """When it is first called, and kept on disk, beside this file or in the user's cache; only in memory if neither can be written to."""
    in_memory = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        loop = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return in_memory

    @wraps(function)
    def run(*arguments: Any) -> Any:
        nonlocal loop
        try:
            return loop(*arguments)
        except (
            OSError
        ):  # the disk is full, or the folder has gone: it comes before the first element, no loop raises it
            loop = in_memory
        return loop(*arguments)

    return run


inner = numba.njit(error_model="numpy", forceinline=True)  # what a compiled loop calls


def wide(number: Any) -> Any:
    """An element as it is computed with: what comes as uint16 is bfloat16, the upper half of a float32."""
    return number


@overload(wide, inline="always")
def _wide(number: Any) -> Any:
    def widened(number: Any) -> Any:
        return uint32(uint32(number) << uint32(16)).view(float32)

    def same(number: Any) -> Any:
        return number

    return widened if number == numba.types.uint16 else same


def put(out: Any, i: int, number: Any) -> None:
    """An element where it is written to: to what comes as uint16, rounded to bfloat16; of equally near ones to the even one."""
    out[i] = number


@overload(put, inline="always")
def _put(out: Any, i: int, number: Any) -> Any:
    def put_rounded(out: Any, i: int, number: Any) -> None:
        word = float32(number).view(uint32)
        odd = uint32(uint32(word >> uint32(16)) & uint32(1))
        word = uint32(word + uint32(odd + uint32(0x7FFF)))
        nan = uint32(uint32(number != number) * NAN)
        out[i] = uint16(uint32(word | nan) >> uint32(16))

    def put_as_is(out: Any, i: int, number: Any) -> None:
        out[i] = number

    return put_rounded if out.dtype == numba.types.uint16 else put_as_is


def changes(base: Any) -> Any:
    """Memory for both changes of a step."""
    return empty(STEP, base.dtype), empty(STEP, base.dtype)


@overload(changes)
def _changes(base: Any) -> Any:
    number = float64 if base.dtype == numba.types.float64 else float32

    def both(base: Any) -> Any:
        return empty(STEP, number), empty(STEP, number)

    return both


def _lowest_bit(typing: Any, word: Any) -> Any:
    """The place of the lowest bit of a word that has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.types.uint64(word), generate


lowest_bit: Any = intrinsic(_lowest_bit)


@numba.njit(inline="always")
def bits(number: Any) -> Any:
    """Those of its magnitude in float32."""
    return float32(number).view(int32) & MAGNITUDE


@numba.njit(inline="always")
def numbers(i: Any, start: Any, key: Any) -> tuple[Any, Any]:
    """Both random numbers of element i, int32, as amatax.methods._random has them; everything given is uint32."""
    x = uint32(uint32(i * uint32(0x9E3779B1)) + start)
    x = uint32(uint32((x ^ (x >> uint32(16))) * uint32(0x21F0AAAD)) ^ key)
    x = uint32((x ^ (x >> uint32(15))) * uint32(0x735A2D97))
    y = uint32((x ^ (x >> uint32(15))) * uint32(0x31848BAB))
    return int32(x) >> int32(1), int32(y) >> int32(1)


@compiled
def change(base: Any, model: Any, out: Any) -> None:
    """model - base."""
    _change(base, model, out)


@inner
def _change(base: Any, model: Any, out: Any) -> None:
    for i in range(len(base)):
        out[i] = wide(model[i]) - wide(base[i])


@compiled
def trimmed(
    base: Any,
    sft: Any,
    rlhf: Any,
    out: Any,
    how: How,
    first: int,
    ends_sft: Any,
    ends_rlhf: Any,
) -> None:
    """Both changes cut off at their ends, and combined; the first element is element `first` of the tensor."""
    one, other = changes(base)
    for begin in range(0, len(base), STEP):
        end = min(begin + STEP, len(base))
        b, s, r = base[begin:end], one[: end - begin], other[: end - begin]
        trim(b, sft[begin:end], s, first + begin, ends_sft)
        trim(b, rlhf[begin:end], r, first + begin, ends_rlhf)
        combine(s, r, b, out[begin:end], how)


@compiled
def dropped(
    base: Any,
    sft: Any,
    rlhf: Any,
    out: Any,
    how: How,
    start: int,
    key: int,
    limit: int,
) -> None:
    """Elements of both changes dropped at random, and what is left combined."""
    one, other = changes(base)
    for begin in range(0, len(base), STEP):
        end = min(begin + STEP, len(base))
        b, s, r = base[begin:end], one[: end - begin], other[: end - begin]
        _change(b, sft[begin:end], s)
        _change(b, rlhf[begin:end], r)
        drop(s, r, uint32(begin), uint32(start), uint32(key), int32(limit))
        combine(s, r, b, out[begin:end], how)


@compiled
def dropped_by_size(
    base: Any,
    sft: Any,
    rlhf: Any,
    out: Any,
    how: How,
    start: int,
    key: int,
    limits: tuple[Any, Any],
    factors: tuple[Any, Any],
) -> None:
    """The same with a limit, and a factor for what stays, by the upper 16 bits of a magnitude."""
    one, other = changes(base)
    for begin in range(0, len(base), STEP):
        end = min(begin + STEP, len(base))
        b, s, r = base[begin:end], one[: end - begin], other[: end - begin]
        _change(b, sft[begin:end], s)
        _change(b, rlhf[begin:end], r)
        drop_by_size(s, r, uint32(begin), uint32(start), uint32(key), limits, factors)
        combine(s, r, b, out[begin:end], how)


@inner
def drop(sft: Any, rlhf: Any, first: Any, start: Any, key: Any, limit: Any) -> None:
    """Times zero, in place, what is not below the limit."""
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        x, y = numbers(uint32(first + uint32(i)), start, key)
        s, r = sft[i], rlhf[i]
        sft[i] = s if x < limit else s * zero
        rlhf[i] = r if y < limit else r * zero


@inner
def drop_by_size(
    sft: Any, rlhf: Any, first: Any, start: Any, key: Any, limits: tuple[Any, Any], factors: tuple[Any, Any]
) -> None:
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        x, y = numbers(uint32(first + uint32(i)), start, key)
        s, r = sft[i], rlhf[i]
        a, b = bits(s) >> 16, bits(r) >> 16
        sft[i] = (s if x < limits[0][a] else s * zero) * factors[0][a]
        rlhf[i] = (r if y < limits[1][b] else r * zero) * factors[1][b]


@inner
def trim(base: Any, model: Any, out: Any, first: int, ends: tuple[float, int, float, int]) -> None:
    """The change, with zeros below the bottom and above the top; the first of those at a limit, up to its end, count as above it."""
    count, zero = len(base), out.dtype.type(0)
    bottom, top = float32(ends[0]), float32(ends[2])
    stay = uint32(min(max(ends[1] - first, 0), count))  # of those at the bottom, the elements before this one
    go = uint32(min(max(ends[3] - first, 0), count))
    if top == inf and not go:
        for i in range(count):
            change = wide(model[i]) - wide(base[i])
            size = abs(float32(change))
            out[i] = zero if (size < bottom) | ((size == bottom) & (uint32(i) >= stay)) else change
        return
    for i in range(count):
        change = wide(model[i]) - wide(base[i])
        size = abs(float32(change))
        goes = (size < bottom) | ((size == bottom) & (uint32(i) >= stay))
        tops = (size > top) | ((size == top) & (uint32(i) < go))
        out[i] = zero if goes else (change - change if tops else change)


@inner
def combine(sft: Any, rlhf: Any, base: Any, out: Any, how: How) -> None:
    """What amatax.methods._combining.combined does; both changes are used up."""
    number, elects = sft.dtype.type, how[0]
    zero, tiny = number(0), number(TINY)
    one, other, factor = number(how[1]), number(how[2]), number(how[3])
    for i in range(len(sft) if elects else 0):
        s, r = sft[i], rlhf[i]
        total = s * one + r * other
        total = tiny if total == zero else total
        low, high = s if s < r else r, s if s > r else r
        elected = high if total > zero else low
        mean = total if (low > zero) | (high < zero) else elected
        mean = low if mean < low else mean
        mean = high if mean > high else mean
        sft[i] = (mean if total == total else total) * factor
    for i in range(0 if elects else len(sft)):
        sft[i] = sft[i] * one + rlhf[i] * other
    for i in range(len(sft)):
        put(out, i, (sft[i] + zero) + wide(base[i]))  # no change has no sign


@compiled
def survey(
    base: Any,
    model: Any,
    low: float,
    high: float,
    begin_picking: float,
    end_picking: float,
    first: int,
    found: Any,
    where: Any,
    taken: int,
) -> tuple[int, int, int, int, int, int]:
    """Of a change, in float32, how many sizes are above `high`, at it, between both, at `low`, and finite; and some, picked out.

    Args:
        begin_picking, end_picking: sizes from the one to the other are written to `found`, float32, and their places, counted from
            `first`, to `where`, as far as there is room.
        taken: of both, how much is full. Where it would end if there were room for all is what comes last.
    """
    above = from_high = beyond_low = from_low = finite = 0
    end = taken
    for begin in range(0, len(base), STEP):
        b, m = base[begin : begin + STEP], model[begin : begin + STEP]
        counts = count(b, m, float32(low), float32(high))
        above, from_high, beyond_low = above + counts[0], from_high + counts[1], beyond_low + counts[2]
        from_low, finite = from_low + counts[3], finite + counts[4]
        if counts[3] > counts[0] and begin_picking <= end_picking:
            end = pick(b, m, float32(begin_picking), float32(end_picking), first + begin, found, where, end)
    return above, from_high - above, beyond_low - from_high, from_low - beyond_low, finite, end


@inner
def count(base: Any, model: Any, low: Any, high: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Of a change, how many sizes are above `high`, from `high` on, above `low`, from `low` on, and finite."""
    above = from_high = beyond_low = from_low = finite = uint32(0)  # as wide as the numbers: counted side by side
    for i in range(len(base)):
        size = abs(float32(wide(model[i]) - wide(base[i])))
        above = uint32(above + uint32(size > high))
        from_high = uint32(from_high + uint32(size >= high))
        beyond_low = uint32(beyond_low + uint32(size > low))
        from_low = uint32(from_low + uint32(size >= low))
        finite = uint32(finite + uint32(size < inf))
    return int(above), int(from_high), int(beyond_low), int(from_low), int(finite)


@inner
def pick(base: Any, model: Any, low: Any, high: Any, first: int, found: Any, where: Any, end: int) -> int:
    """Write the sizes of a change from `low` to `high`, and their places, from element `end` on; where they would end."""
    for begin in range(0, len(base), WORD):
        rest = len(base) - begin
        if rest >= WORD:  # a number that the compiler knows: it does them side by side
            word = inside(base, model, begin, WORD, low, high)
        else:
            word = inside(base, model, begin, rest, low, high)
        while word:
            i = begin + lowest_bit(word)
            if end < len(found):
                found[end], where[end] = abs(float32(wide(model[i]) - wide(base[i]))), first + i
            end += 1
            word &= word - uint64(1)
    return end


@numba.njit(inline="always")
def inside(base: Any, model: Any, begin: int, count: int, low: Any, high: Any) -> Any:
    """A bit for each change from `low` to `high`."""
    word = uint64(0)
    for j in range(count):
        size = abs(float32(wide(model[begin + j]) - wide(base[begin + j])))
        word |= uint64((size >= low) & (size <= high)) << uint64(j)
    return word


@compiled
def find(base: Any, model: Any, size: float, rank: int) -> int:
    """The place of the so-manieth change of a size; as many places as there are, if there are fewer."""
    for i in range(len(base)):
        if abs(float32(wide(model[i]) - wide(base[i]))) == float32(size):
            rank -= 1
            if not rank:
                return i
    return len(base)


@compiled
def tally(base: Any, model: Any, counts: Any) -> None:
    """Count a change's magnitudes by their upper 16 bits."""
    for i in range(len(base)):
        counts[bits(wide(model[i]) - wide(base[i])) >> 16] += 1


@compiled
def products(sft: Any, rlhf: Any) -> tuple[float, float, float]:
    """sft . rlhf, sft . sft and rlhf . rlhf in float64."""
    sums = zeros((3, LANES))
    for begin in range(0, len(sft), LANES):
        add_products(sft[begin : begin + LANES], rlhf[begin : begin + LANES], sums)
    return sums[0].sum(), sums[1].sum(), sums[2].sum()


@compiled
def change_products(base: Any, sft: Any, rlhf: Any) -> tuple[float, float, float]:
    """The same of both changes."""
    sums = zeros((3, LANES))
    one, other = changes(base)
    for begin in range(0, len(base), LANES):
        b = base[begin : begin + LANES]
        s, r = one[: len(b)], other[: len(b)]
        _change(b, sft[begin : begin + LANES], s)
        _change(b, rlhf[begin : begin + LANES], r)
        add_products(s, r, sums)
    return sums[0].sum(), sums[1].sum(), sums[2].sum()


@inner
def add_products(sft: Any, rlhf: Any, sums: Any) -> None:
    """Of LANES elements, or the last few: in many sums side by side, so that vectors of any width add them up in one order."""
    both, one, other = sums[0], sums[1], sums[2]
    for j in range(len(sft)):
        s, r = float64(wide(sft[j])), float64(wide(rlhf[j]))
        both[j] += s * r
        one[j] += s * s
        other[j] += r * r
