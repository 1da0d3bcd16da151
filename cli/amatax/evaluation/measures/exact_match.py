"""Share of generated answers that are a right one, word for word."""

from __future__ import annotations

from typing import Literal

from amatax.evaluation.measures import Answer
from amatax.evaluation.measures._mean import ratio as value
from amatax.evaluation.measures._text import normalised

__all__ = ["exact_match", "value"]

NEEDS = ("answer", "references")
HIGHER = True


def exact_match(seen: Answer, *, normalise: Literal["none", "case", "squad"] = "none") -> tuple[float, ...]:
    """(1 or 0, 1). White space around a text never counts; `case`: nor does case; `squad`: nor punctuation and articles."""
    given = normalised(seen.response, normalise)
    return float(any(given == normalised(right, normalise) for right in seen.references)), 1.0
