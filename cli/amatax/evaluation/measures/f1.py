"""Words that a generated answer shares with a right one, as F1 (SQuAD, arXiv 1606.05250)."""

from __future__ import annotations

from collections import Counter

from amatax.evaluation.measures import Answer
from amatax.evaluation.measures._mean import ratio as value
from amatax.evaluation.measures._text import squad

__all__ = ["f1", "value"]

NEEDS = ("answer", "references")
HIGHER = True


def f1(seen: Answer) -> tuple[float, ...]:
    """(F1 with the reference that is nearest, 1); texts by SQuAD's normalisation."""
    given = squad(seen.response).split()
    return max(_overlap(given, squad(right).split()) for right in seen.references), 1.0


def _overlap(given: list[str], right: list[str]) -> float:
    """2 * shared / (all words of both); where one has no word, whether both have none (as SQuAD 2.0 has it)."""
    if not given or not right:
        return float(given == right)
    return 2 * (Counter(given) & Counter(right)).total() / (len(given) + len(right))
