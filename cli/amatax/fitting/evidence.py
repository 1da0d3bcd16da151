"""How sure a fit is: a paired bootstrap over prompts for two sets of ratios, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from amatax.fitting.likelihood import Measured

DRAWS = 4000
AT_ONCE = 100  # draws
LEVEL = 0.95
FEWEST = 10  # prompts; a bootstrap of fewer is surer than it should be


class Interval(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(one: Measured, other: Measured, prompts: Sequence[str], seed: int) -> Interval:
    """NLL of one minus NLL of the other, nats per token; percentiles over prompts drawn with replacement.

    Args:
        one, other: of the same samples.
        prompts: of each sample; responses to one prompt are drawn together.
        seed: of the draws.
    """
    group = prompt_groups(prompts)
    difference = np.bincount(group, (one.sums - other.sums).numpy())
    tokens = np.bincount(group, one.tokens.numpy())
    count, random = len(tokens), np.random.default_rng(seed)
    draws = np.empty(DRAWS)
    for begin in range(0, DRAWS, AT_ONCE):  # drawn all at once they would be gigabytes
        drawn = random.multinomial(count, np.full(count, 1 / count), size=AT_ONCE)
        draws[begin : begin + AT_ONCE] = (drawn @ difference) / (drawn @ tokens)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(difference.sum() / tokens.sum()), float(low), float(high))


def verdict(interval: Interval, prompts: int) -> str:
    """Fitted against uniform on samples that were never fitted: better, worse, indistinguishable, or too few to tell."""
    if prompts < FEWEST:
        return "too few"
    if interval.high < 0:
        return "better"
    return "worse" if interval.low > 0 else "indistinguishable"


def prompt_groups(prompts: Sequence[str]) -> np.ndarray:
    number: dict[str, int] = {}
    return np.array([number.setdefault(prompt, len(number)) for prompt in prompts])
