"""The value of most measures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """sums[..., 0] / sums[..., 1]: of (score, 1) the mean; NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: NDArray[np.float64] = np.where(sums[..., 1] == 0, np.nan, sums[..., 0] / sums[..., 1])
    return quotient
