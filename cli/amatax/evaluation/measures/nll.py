"""Negative log-likelihood of the data's responses, nats per response token; the end of turn counts as a token."""

from __future__ import annotations

from amatax.evaluation.measures import Likelihood
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["nll", "value"]

NEEDS = ("likelihood",)
HIGHER = False


def nll(seen: Likelihood) -> tuple[float, ...]:
    """(nats, tokens)."""
    return seen.nats, float(seen.tokens)
