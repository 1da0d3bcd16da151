"""Responses side by side: which samples a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from amatax.evaluation.results import Point, Results, half_of

SHOWN = 4


class Example(NamedTuple):
    """One sample under several points.

    Attributes:
        measure, sample: of which it is.
        responses: by the point's name.
        scores: the measure of this sample alone, by the point's name.
    """

    measure: str
    sample: str
    responses: dict[str, str]
    scores: dict[str, float]


def examples(results: Results, points: Sequence[Point], shown: int = SHOWN) -> list[Example]:
    """Samples of each measure with responses: spread evenly over the reported half, among those where not all respond alike.

    Measures of the same responses are shown once, by the first of them. Nothing is picked by its score.
    """
    found: list[Example] = []
    seen: set[tuple[str, ...]] = set()
    for name, measure in results.measures.items():
        measured = {point.name: point.measured[name] for point in points if name in point.measured}
        responses = {p: m.responses for p, m in measured.items() if m.responses is not None}
        if len(responses) < 2:
            continue
        first = next(iter(measured.values()))
        texts = [{p: r[i] for p, r in responses.items()} for i in range(len(first.samples))]
        apart = [
            i
            for i, sample in enumerate(first.samples)
            if half_of(sample) == "report" and len(set(texts[i].values())) > 1 and tuple(texts[i].values()) not in seen
        ]
        seen |= {tuple(text.values()) for text in texts}
        for i in apart[:: max(1, len(apart) // shown)][:shown]:
            scores = {p: float(measure.value(measured[p].sums[i])) for p in responses}
            found.append(Example(name, first.samples[i], texts[i], scores))
    return found
