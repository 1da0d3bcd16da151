"""What kernels do with every element, in one compiled loop: for tensors on the CPU, where there is numba.

torch goes through memory once for each operation, and a dozen of them take several times as long as the loop. The results are the same,
bit for bit: each rounding is torch's own, and no product is fused with a sum. (`products` sums up in another order.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numba
from numpy import float32, float64, inf, int32, uint32, uint64, zeros

MAGNITUDE = int32(0x7FFFFFFF)  # float32 without its sign
WORD = 64  # bits of one
LANES = 8


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


@numba.njit(inline="always")
def numbers(i: Any, start: Any, key: Any) -> tuple[Any, Any]:
    """Both random numbers of element i, int32, as amatax.methods._random has them; everything given is uint32."""
    x = uint32(uint32(i * uint32(0x9E3779B1)) + start)
    x = uint32(uint32((x ^ (x >> uint32(16))) * uint32(0x21F0AAAD)) ^ key)
    x = uint32((x ^ (x >> uint32(15))) * uint32(0x735A2D97))
    y = uint32((x ^ (x >> uint32(15))) * uint32(0x31848BAB))
    return int32(x) >> int32(1), int32(y) >> int32(1)


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
def drop_by_size(
    sft: Any,
    rlhf: Any,
    sizes: tuple[Any, Any],
    start: Any,
    key: Any,
    limits: tuple[Any, Any],
    factors: tuple[Any, Any],
) -> None:
    """The same with a limit, and a factor for what stays, by the upper 16 bits of a magnitude; `sizes` are the changes' bits."""
    zero = sft.dtype.type(0)
    for i in range(len(sft)):
        x, y = numbers(uint32(i), start, key)
        a, b = (sizes[0][i] & MAGNITUDE) >> 16, (sizes[1][i] & MAGNITUDE) >> 16
        s, r = sft[i], rlhf[i]
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
        sft[i] = (mean if total == total else total) * scale + base[i]


@compiled
def trim(base: Any, model: Any, out: Any, first: int, bottom: Any, bottom_end: int, top: Any, top_end: int) -> None:
    """The change, with zeros below the bottom and above the top; the first of those at a limit, up to its end, count as above it."""
    zero = base.dtype.type(0)
    for i in range(len(base)):
        change = model[i] - base[i]
        size = abs(float32(change))
        goes = (size < bottom) | ((size == bottom) & (first + i >= bottom_end))
        tops = (size > top) | ((size == top) & (first + i < top_end))
        out[i] = zero if goes else (change - change if tops else change)


@compiled
def count(base: Any, model: Any, low: Any, high: Any) -> tuple[int, int, int, int, int]:
    """Of a change, in float32, how many sizes are above `high`, at it, between both, at `low`, and finite."""
    above = from_high = beyond_low = from_low = finite = 0
    for i in range(len(base)):
        size = abs(float32(model[i] - base[i]))
        above += size > high
        from_high += size >= high
        beyond_low += size > low
        from_low += size >= low
        finite += int(size < inf)
    return above, from_high - above, beyond_low - from_high, from_low - beyond_low, finite


@numba.njit(inline="always")
def inside(base: Any, model: Any, begin: int, count: int, low: Any, high: Any) -> Any:
    """A bit for each change from `low` to `high`."""
    word = uint64(0)
    for j in range(count):
        size = abs(float32(model[begin + j] - base[begin + j]))
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
                found[n], where[n] = abs(float32(model[i] - base[i])), first + i
                n += 1
            word, i = word >> uint64(1), i + 1


@compiled
def tally(sizes: Any, counts: Any) -> None:
    """Count magnitudes by their upper 16 bits."""
    for i in range(len(sizes)):
        counts[(sizes[i] & MAGNITUDE) >> 16] += 1


@compiled
def products(sft: Any, rlhf: Any) -> tuple[float, float, float]:
    """sft . rlhf, sft . sft and rlhf . rlhf in float64, in eight sums side by side: torch's order is another."""
    both, one, other = zeros(LANES), zeros(LANES), zeros(LANES)
    whole = len(sft) - len(sft) % LANES
    for begin in range(0, whole, LANES):
        for j in range(LANES):
            s, r = float64(sft[begin + j]), float64(rlhf[begin + j])
            both[j] += s * r
            one[j] += s * s
            other[j] += r * r
    for i in range(whole, len(sft)):
        s, r = float64(sft[i]), float64(rlhf[i])
        both[0] += s * r
        one[0] += s * s
        other[0] += r * r
    return both.sum(), one.sum(), other.sum()
