"""Share of samples whose right choice is the model's likeliest."""

from __future__ import annotations

from typing import Literal

from amatax.evaluation.measures import Choices
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["multiple_choice", "value"]

NEEDS = ("choices",)
HIGHER = True


def multiple_choice(seen: Choices, *, per: Literal["choice", "token", "character"] = "choice") -> tuple[float, ...]:
    """(1 or 0, 1). log p of each choice as it is, or divided by its tokens or characters; of equal ones the first is taken."""
    lengths = {
        "choice": [1] * len(seen.texts),
        "token": [likelihood.tokens for likelihood in seen.likelihoods],
        "character": [len(text) for text in seen.texts],
    }[per]
    nats = [likelihood.nats / length for likelihood, length in zip(seen.likelihoods, lengths, strict=True)]
    return float(nats.index(min(nats)) == seen.answer), 1.0
