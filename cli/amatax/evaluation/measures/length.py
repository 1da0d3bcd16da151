"""Mean length of generated answers."""

from __future__ import annotations

from typing import Literal

from amatax.evaluation.measures import Answer
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["length", "value"]

NEEDS = ("answer",)
HIGHER = None


def length(seen: Answer, *, unit: Literal["token", "word", "character"] = "token") -> tuple[float, ...]:
    """(length, 1): tokens, with the one that ended it; words between white space; or characters."""
    counts = {"token": seen.tokens, "word": len(seen.response.split()), "character": len(seen.response)}
    return float(counts[unit]), 1.0
