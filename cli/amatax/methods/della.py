"""DELLA (arXiv 2406.11617): elements of each change dropped at random, small ones more often, then the sign election of TIES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods import Chunk, Chunks, Factor, Flag, Seed, Share
from amatax.methods._combining import Combining, combined, in_one_pass
from amatax.methods._compiled import array
from amatax.methods._magnitudes import deltas, histograms, magnitude
from amatax.methods._random import NONE, WORD, keep, numbers, pieces

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")
WIDENS = True


class Chances(NamedTuple):
    """Of the elements of one change, by the upper 16 bits of their magnitude."""

    limits: torch.Tensor  # int32: below it lies the random number of an element that is kept
    factors: torch.Tensor  # float32: by which it is multiplied


def check(*, density: float, epsilon: float, **_: object) -> str:
    """Chances are between 0 and 1."""
    if density - epsilon >= 0 and density + epsilon <= 1:
        return ""
    return f"density {density:g} with epsilon {epsilon:g} gives chances outside 0..1: epsilon is at most {min(density, 1 - density):g} here"


def prepare(
    chunks: Chunks, ratio: float, *, density: Share = 0.5, epsilon: Share = 0.1, rescale: Flag = True
) -> list[Chances]:
    """The chance of every magnitude: density - epsilon for the smallest to density + epsilon for the largest, linear in the rank.

    Ranks go over the whole tensor; magnitudes with the same upper 16 bits share the mean of their ranks.
    """
    import torch

    found = []
    for counts in histograms(chunks):
        total = int(counts.sum())
        ranks = counts.cumsum(0).double() - (counts.double() + 1) / 2  # from 0 to total - 1
        shares = (
            density - epsilon + 2 * epsilon * ranks / max(1, total - 1)
            if total > 1
            else torch.full_like(ranks, density)
        )
        shares = shares.clamp(0, 1)
        limits = ((shares * (WORD // 2)).round() - WORD // 4).to(torch.int32)
        factors = torch.where(limits > NONE, 1 / shares.clamp(min=1 / WORD), 0) if rescale else torch.ones_like(shares)
        found.append(Chances(limits, factors.float()))
    return found


def della(
    tensors: Mapping[str, torch.Tensor],
    ratio: float,
    out: torch.Tensor | None = None,
    *,
    stats: list[Chances],
    chunk: Chunk,
    density: Share = 0.5,
    epsilon: Share = 0.1,
    rescale: Flag = True,
    scale: Factor = 1.0,
    seed: Seed = 0,
) -> torch.Tensor:
    """base + scale * the disjoint mean of the changes of SFT and RLHF, each dropped at random by its magnitudes' ranks.

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF: the changes are weighted by 1 - ratio and ratio.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        stats: what `prepare` found.
        chunk: where this one stands.
        density: the mean probability of an element to be kept.
        epsilon: by how much that of the largest is more, and that of the smallest less.
        rescale: divide each element that is kept by its probability.
        scale: of the merged change (lambda in the paper).
        seed: of the drops; they depend on it, the tensor's name and the element alone.

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    how = Combining(ratio, scale, elects=True)
    (_, start, key), *others = pieces(chunk, len(tensors["base"]), seed)
    if not others:
        tables = [tuple(map(array, both)) for both in zip(*stats, strict=True)]
        merged = in_one_pass("dropped_by_size", tensors, out, how, start, key, *tables)
        if merged is not None:
            return merged
    changes = deltas(tensors)
    both = numbers(chunk, len(changes[0]), seed, changes[0].device)
    for change, drawn, chances in zip(changes, both, stats, strict=True):
        limits, factors = (table.to(change.device) for table in chances)
        bins = magnitude(change) >> 16
        keep(change, drawn, limits.index_select(0, bins)).mul_(factors.index_select(0, bins))
    return combined(*changes, tensors["base"], how)
