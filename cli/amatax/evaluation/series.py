"""Which points belong on one line, and how a measure is spelled."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress

from amatax.evaluation.results import Measure, Point, Results
from amatax.evaluation.statistics import standard_error, value_of

UNORDERED = (
    "grid",
    "surrogate",
    "proposed",
    "recipe",
    "model",
    "base",
    "sft",
    "rlhf",
)  # no line leads from one to the next
ROUNDING = 1e-9  # an error that is no larger, of the value, is that of the arithmetic: all samples are alike
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


def digits_for(spread: float, value: float = 0.0) -> int:
    """Decimals that a number of this spread (a standard error) can tell, and one more; three if all samples are alike."""
    if not ROUNDING * abs(value) < spread < math.inf:
        return 3
    return min(max(1 - math.floor(math.log10(spread)), 0), 6)


def number(value: float, digits: int) -> str:
    """With that many decimals; a dash for what is not defined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def digits_of(results: Results, name: str) -> int:
    """Decimals of a measure, the same at every point: by the median of its standard errors."""
    measure, known = results.measures[name], []
    for point in results.points:
        if (measured := point.measured.get(name)) is not None:
            error = standard_error(measure, measured)
            if error > ROUNDING * abs(value_of(measure, measured)):
                known.append(error)
    return digits_for(statistics.median_low(known)) if known else 3


def ratios_in_words(ratios: Mapping[str, float]) -> str:
    """`blocks 0.7, 0.4, 0.1; head 0.4`."""
    blocks = [f"{value:g}" for name, value in ratios.items() if name.startswith("blocks.")]
    rest = [f"{name} {value:g}" for name, value in ratios.items() if not name.startswith("blocks.")]
    return "; ".join([*([f"blocks {', '.join(blocks)}"] if blocks else []), *rest])
