"""A few samples that stand for all of them: wherever all were asked, the few say the same (a balanced sample, by swaps)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

SWEEPS = 20  # at most; a sweep or three are enough
FLAT = 1e-3  # a direction with less of the spread than this is noise


def balanced(facts: Sequence[Sequence[float]], count: int, seed: int) -> list[int]:
    """Choose samples whose means are those of all the samples.

    Drawn at random, then each is exchanged for the one that brings the means nearest, until none does. What the few then say of
    points between those that were asked is several times nearer to what all say than a random draw is (benchmarks/RESULTS.md).

    Args:
        facts: (facts, samples): numbers known of every sample: its tokens, and -log p at some ratios. What tells the second and
            the later ones of these from the first counts, however close they are.
        count: how many.
        seed: of the first draw.

    Returns:
        Their indices, ascending; all if there are no more.
    """
    numbers = np.array(facts, dtype=float).T
    total = len(numbers)
    if total <= count:
        return list(range(total))
    chosen = np.array(random.Random(seed).sample(range(total), count))
    numbers[:, 2:] -= numbers[:, 1:2]
    numbers -= numbers.mean(0)
    numbers /= np.maximum(numbers.std(0), np.finfo(float).tiny)  # whatever it is measured in
    axes, spreads, _ = np.linalg.svd(numbers, full_matrices=False)
    axes = axes[:, spreads > FLAT * spreads[0]]
    there, off = np.zeros(total, dtype=bool), axes[chosen].sum(0)
    there[chosen] = True
    for _ in range(SWEEPS):
        before = chosen.copy()
        for i, one in enumerate(chosen):
            rest = off - axes[one]
            miss = ((rest + axes) ** 2).sum(1)
            miss[there] = np.inf
            best = int(miss.argmin())
            if miss[best] < (off**2).sum():
                there[one], there[best] = False, True
                chosen[i], off = best, rest + axes[best]
        if (chosen == before).all():
            break
    return sorted(int(i) for i in chosen)
