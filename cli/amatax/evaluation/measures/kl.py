"""KL(SFT || model) along SFT's responses, nats per response token: the tax that `fit-ratios --keep` bounds."""

from __future__ import annotations

from amatax.evaluation.measures import Likelihood
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["kl", "value"]

NEEDS = ("divergence",)
HIGHER = False


def kl(seen: Likelihood) -> tuple[float, ...]:
    """(nats, tokens)."""
    return seen.nats, float(seen.tokens)
