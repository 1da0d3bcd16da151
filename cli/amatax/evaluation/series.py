"""Which points belong on one line, and how a measure is spelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from amatax.evaluation.results import Measure, Point

UNORDERED = ("grid", "surrogate", "recipe", "model", "base", "sft", "rlhf")  # no line leads from one to the next
STEM = {"nll": "NLL", "kl": "KL", "bleu": "BLEU", "f1": "F1"}


def series_of(point: Point) -> str:
    """`uniform 0.3` -> `uniform`, `parts input 0.3` -> `parts input`: the name without the ratio at its end; else the kind."""
    stem, _, last = point.name.rpartition(" ")
    with suppress(ValueError):
        float(last)
        if stem.startswith(point.kind):
            return point.kind if point.kind in UNORDERED else stem
    return point.kind


def in_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points by series, in the table's order; on a line by alpha."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(series_of(point), []).append(point)
    for name, members in found.items():
        if name not in UNORDERED:
            members.sort(key=lambda point: (point.alpha is None, point.alpha or 0.0, point.name))
    return found


def label(measure: Measure) -> str:
    """`nll` -> `NLL, less is better`."""
    name = STEM.get(measure.name, measure.name)
    way = {True: ", more is better", False: ", less is better", None: ""}[measure.higher]
    return f"{name}{way}"


def number(value: float, spread: float) -> str:
    """With as many digits as its spread (a standard error) can tell, and one more."""
    if value != value:
        return "–"
    if not spread > 0:
        return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"
    digits = 0
    while spread * 10**digits < 1 and digits < 6:
        digits += 1
    return f"{value:.{min(digits + 1, 6) if digits else 1}f}"


def ratios_in_words(ratios: Mapping[str, float]) -> str:
    """`blocks 0.7, 0.4, 0.1; head 0.4`."""
    blocks = [f"{value:g}" for name, value in ratios.items() if name.startswith("blocks.")]
    rest = [f"{name} {value:g}" for name, value in ratios.items() if not name.startswith("blocks.")]
    return "; ".join([*([f"blocks {', '.join(blocks)}"] if blocks else []), *rest])
