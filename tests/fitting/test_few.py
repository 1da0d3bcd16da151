"""Few samples that stand for all: they agree where all were asked, and nearly so between."""

from __future__ import annotations

import numpy as np
import pytest

from amatax.fitting.few import balanced


def losses(seed: int, samples: int = 320, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of every sample, and -log p at eleven ratios (ratios, samples): smooth curves of their own, some long, some short."""
    random = np.random.default_rng(seed)
    ratios = np.linspace(0, 1, 11)
    length, ease, bend = (
        random.gamma(4, 15, samples),
        random.normal(0.6, 0.15, samples),
        random.normal(0.4, 0.1, samples),
    )
    return length, length * (random.gamma(4, 0.1, samples) + apart * bend * (ratios[:, None] - ease) ** 2)


def worst(numbers: np.ndarray, chosen: list[int]) -> float:
    """How far the mean of the few is from that of all, at most, up to a constant; in units of what the ratios change."""
    apart = numbers[:, chosen].mean(1) - numbers.mean(1)
    return float(np.ptp(apart) / np.ptp(numbers.mean(1)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("apart", [1.0, 0.1, 0.003])
@pytest.mark.parametrize("unit", [1.0, 1e4])
def test_they_say_what_all_say(seed: int, apart: float, unit: float) -> None:
    """Known at three ratios, they are right at all others, ten times nearer than random ones, however close the two models are."""
    tokens, numbers = losses(seed, apart=apart)
    chosen = balanced([tokens * unit, *numbers[[0, 4, 10]]], 32, seed)
    assert len(set(chosen)) == 32
    assert chosen == sorted(chosen)
    random = np.random.default_rng(seed)
    others = [worst(numbers, random.choice(320, 32, replace=False).tolist()) for _ in range(20)]
    assert worst(numbers, chosen) < np.mean(others) / 10


def test_the_seed_tells_and_nothing_else() -> None:
    tokens, numbers = losses(0)
    facts = np.stack([tokens, *numbers[[0, 10]]])
    once = balanced(facts, 32, 0)
    assert once == balanced(facts, 32, 0)
    assert once != balanced(facts, 32, 1)
    noise = np.random.default_rng(0).normal(0, 1e-7, facts.shape)
    assert once == balanced(facts * (1 + noise), 32, 0)  # as another number of threads would round


def test_as_many_as_there_are() -> None:
    _, numbers = losses(0, samples=5)
    assert balanced(numbers, 5, 0) == balanced(numbers, 32, 0) == [0, 1, 2, 3, 4]


def test_samples_that_are_all_alike() -> None:
    assert len(balanced([[1.0] * 50], 8, 0)) == 8
