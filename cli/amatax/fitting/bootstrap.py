"""The bootstrap: what sums over samples would be, had other samples of the same kind been drawn (Efron, 1979)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
AT_ONCE = 100  # draws
LEVEL = 0.95
FEWEST = 10  # samples; a bootstrap of fewer is surer than it should be


class Interval(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


def resampled_sums(rows: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums over samples drawn with replacement, as many as there are; the same draws for the same number of samples and seed.

    Args:
        rows: (samples, columns): what each sample adds.
        seed: of the draws.

    Returns:
        float64 (DRAWS, columns).
    """
    count, random = len(rows), np.random.default_rng(seed)
    sums = np.empty((DRAWS, rows.shape[1]))
    for begin in range(0, DRAWS, AT_ONCE):  # drawn all at once they would be gigabytes
        drawn = random.multinomial(count, np.full(count, 1 / count), size=AT_ONCE)
        sums[begin : begin + AT_ONCE] = drawn @ rows
    return sums


def percentile_interval(value: float, draws: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """The value, between the percentiles of its draws that leave out 1 - level, as much on either side."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))
