"""Mean reward of generated answers, by a reward model (`model:`) or a function (`--reward FILE.py:function`)."""

from __future__ import annotations

from amatax.evaluation.measures import Answer
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["reward", "value"]

NEEDS = ("answer", "reward")
HIGHER = True


def reward(seen: Answer) -> tuple[float, ...]:
    """(reward, 1)."""
    return seen.reward, 1.0
