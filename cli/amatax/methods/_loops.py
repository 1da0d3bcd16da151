"""What kernels do with every element, in one compiled loop: for tensors on the CPU, where there is numba.

torch goes through memory once for each operation, and a dozen of them take several times as long as the loop. The results are the same,
bit for bit: each rounding is torch's own, and no product is fused with a sum. (`products` sums up in another order.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numba
from numba.extending import overload
from numpy import float32, float64, inf, int32, uint32, uint64, zeros

MAGNITUDE = int32(0x7FFFFFFF)  # float32 without its sign
WORD = 64  # bits of one
LANES = 256  # enough that the checks before a loop of them cost little


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
    for i in range(len(base)):
        out[i] = wide(model[i]) - wide(base[i])


@compiled
def drop(sft: Any, rlhf: Any, start: Any, key: Any, limit: int) -> None:
    """Times zero, in place, what is not below the limit."""
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        x, y = numbers(uint32(i), start, key)
        s, r = sft[i], rlhf[i]
        sft[i] = s if x < limit else s * zero
        rlhf[i] = r if y < limit else r * zero


@compiled
def drop_by_size(sft: Any, rlhf: Any, start: Any, key: Any, limits: tuple[Any, Any], factors: tuple[Any, Any]) -> None:
    """The same with a limit, and a factor for what stays, by the upper 16 bits of a magnitude."""
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        x, y = numbers(uint32(i), start, key)
        s, r = sft[i], rlhf[i]
        a, b = bits(s) >> 16, bits(r) >> 16
        sft[i] = (s if x < limits[0][a] else s * zero) * factors[0][a]
        rlhf[i] = (r if y < limits[1][b] else r * zero) * factors[1][b]


@compiled
def agree(sft: Any, rlhf: Any, base: Any, weight_sft: Any, weight_rlhf: Any, scale: Any, tiny: Any) -> None:
    """base + scale * the disjoint mean of two changes, as amatax.methods._consensus.agreed has it, in SFT's memory."""
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        s, r = sft[i], rlhf[i]
        total = s * weight_sft + r * weight_rlhf
        total = tiny if total == zero else total
        low, high = s if s < r else r, s if s > r else r
        alike = (s > zero and r > zero) or (s < zero and r < zero)
        mean = min(max(total, low), high) if alike else (high if total > zero else low)
        sft[i] = (mean if total == total else total) * scale + wide(base[i])


@compiled
def trim(base: Any, model: Any, out: Any, first: int, bottom: Any, bottom_end: int, top: Any, top_end: int) -> None:
    """The change, with zeros below the bottom and above the top; the first of those at a limit, up to its end, count as above it."""
    count, zero = len(base), out.dtype.type(0)
    stay = uint32(min(max(bottom_end - first, 0), count))  # of those at the bottom, the elements before this one
    go = uint32(min(max(top_end - first, 0), count))
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


@compiled
def count(base: Any, model: Any, low: Any, high: Any) -> tuple[int, int, int, int, int]:
    """Of a change, in float32, how many sizes are above `high`, at it, between both, at `low`, and finite; of less than 2^32 elements."""
    above = from_high = beyond_low = from_low = finite = uint32(0)  # as wide as the numbers: counted side by side
    for i in range(len(base)):
        size = abs(float32(wide(model[i]) - wide(base[i])))
        above = uint32(above + uint32(size > high))
        from_high = uint32(from_high + uint32(size >= high))
        beyond_low = uint32(beyond_low + uint32(size > low))
        from_low = uint32(from_low + uint32(size >= low))
        finite = uint32(finite + uint32(size < inf))
    return int(above), int(from_high - above), int(beyond_low - from_high), int(from_low - beyond_low), int(finite)


@numba.njit(inline="always")
def inside(base: Any, model: Any, begin: int, count: int, low: Any, high: Any) -> Any:
    """A bit for each change from `low` to `high`."""
    word = uint64(0)
    for j in range(count):
        size = abs(float32(wide(model[begin + j]) - wide(base[begin + j])))
        word |= uint64((size >= low) & (size <= high)) << uint64(j)
    return word


@compiled
def pick(base: Any, model: Any, low: Any, high: Any, first: int, found: Any, where: Any) -> None:
    """The sizes of a change from `low` to `high`, float32, and their places, counted from `first`."""
    n = 0
    for begin in range(0, len(base), WORD):
        i, rest = begin, len(base) - begin
        if rest >= WORD:  # a number that the compiler knows: it does them side by side
            word = inside(base, model, begin, WORD, low, high)
        else:
            word = inside(base, model, begin, rest, low, high)
        while word:
            if not word & uint64(0xFF):
                word, i = word >> uint64(8), i + 8
                continue
            if word & uint64(1):
                found[n], where[n] = abs(float32(wide(model[i]) - wide(base[i]))), first + i
                n += 1
            word, i = word >> uint64(1), i + 1


@compiled
def tally(base: Any, model: Any, counts: Any) -> None:
    """Count a change's magnitudes by their upper 16 bits."""
    for i in range(len(base)):
        counts[bits(wide(model[i]) - wide(base[i])) >> 16] += 1


@compiled
def products(sft: Any, rlhf: Any) -> tuple[float, float, float]:
    """sft . rlhf, sft . sft and rlhf . rlhf in float64, in many sums side by side: vectors of any width add them up in one order."""
    both, one, other = zeros(LANES), zeros(LANES), zeros(LANES)
    whole = len(sft) - len(sft) % LANES
    for begin in range(0, whole, LANES):
        some, others = sft[begin : begin + LANES], rlhf[begin : begin + LANES]
        for j in range(LANES):
            s, r = float64(wide(some[j])), float64(wide(others[j]))
            both[j] += s * r
            one[j] += s * s
            other[j] += r * r
    for i in range(whole, len(sft)):
        s, r = float64(wide(sft[i])), float64(wide(rlhf[i]))
        both[0] += s * r
        one[0] += s * s
        other[0] += r * r
    return both.sum(), one.sum(), other.sum()
