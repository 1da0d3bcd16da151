"""Share of generated answers in which a right one stands."""

from __future__ import annotations

from typing import Literal

from amatax.evaluation.measures import Answer
from amatax.evaluation.measures._mean import ratio as value
from amatax.evaluation.measures._text import normalised

__all__ = ["contains", "value"]

NEEDS = ("answer", "references")
HIGHER = True


def contains(seen: Answer, *, normalise: Literal["none", "case", "squad"] = "none") -> tuple[float, ...]:
    """(1 or 0, 1). `normalise` as of exact_match; a reference of which it leaves nothing stands nowhere."""
    given = normalised(seen.response, normalise)
    rights = [normalised(right, normalise) for right in seen.references]
    return float(any(right in given for right in rights if right)), 1.0
