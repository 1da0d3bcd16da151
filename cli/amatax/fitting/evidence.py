"""How sure a fit is: a paired bootstrap over prompts for two sets of ratios, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amatax.fitting.bootstrap import FEWEST, Interval, percentile_interval, resampled_sums
from amatax.fitting.likelihood import Measured


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
    draws = resampled_sums(np.stack([difference, tokens], axis=1), seed)
    return percentile_interval(difference.sum() / tokens.sum(), draws[:, 0] / draws[:, 1])


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
