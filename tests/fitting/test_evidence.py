"""The bootstrap against the normal law, and the words of the verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amatax.fitting.bootstrap import Interval
from amatax.fitting.evidence import paired_bootstrap, verdict
from amatax.fitting.intervals import NORMAL
from amatax.fitting.likelihood import Measured

PROMPTS = 400


def test_the_bootstrap_is_normal_for_many_prompts() -> None:
    generator = np.random.default_rng(4)
    apart = generator.normal(-0.1, 1.0, PROMPTS)
    tokens = torch.full((PROMPTS,), 10.0, dtype=torch.float64)
    other = torch.tensor(generator.normal(20.0, 3.0, PROMPTS))
    one = Measured(other + torch.tensor(apart), tokens, None)
    found = paired_bootstrap(one, Measured(other, tokens, None), [str(i) for i in range(PROMPTS)], seed=0)
    error = apart.std(ddof=1) / np.sqrt(PROMPTS) / 10
    assert found.value == pytest.approx(apart.mean() / 10)
    assert found.low == pytest.approx(found.value - NORMAL * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + NORMAL * error, abs=0.1 * error)


@pytest.mark.parametrize(
    ("low", "high", "prompts", "word"),
    [(-2, -1, 10, "better"), (1, 2, 10, "worse"), (-1, 1, 10, "indistinguishable"), (-2, -1, 9, "too few")],
)
def test_verdicts(low: float, high: float, prompts: int, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), prompts) == word
