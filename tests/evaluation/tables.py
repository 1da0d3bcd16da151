"""Small tables of results, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from amatax.evaluation.results import Measure, Measured, Point, Results


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


REWARD = Measure("reward", "reward", True, ratio, {"data": "open.jsonl"})
ABILITIES = Measure("abilities", "exact_match", True, ratio, {"data": "abilities.jsonl"})
KL = Measure("kl", "kl", False, ratio, {"data": "keep.jsonl"})
LENGTH = Measure("length", "length", None, ratio, {"data": "open.jsonl"})


def scores(values: Sequence[float] | NDArray[np.float64], responses: Sequence[str] | None = None) -> Measured:
    """A mean's (score, 1) of every sample."""
    rows = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Measured(rows, tuple(str(i + 1) for i in range(len(values))), tuple(responses) if responses else None)


def exactly(mean: float, count: int = 80, spread: float = 0.0, seed: int = 0) -> Measured:
    """Scores of that mean, on each half of the samples, too (spread 0: all alike)."""
    noise = np.random.default_rng(seed).normal(0, 1, count) * spread
    return scores(np.full(count, mean) + noise - noise.mean())


def table(
    measures: Sequence[Measure], rows: Mapping[str, Sequence[float]], spread: float = 0.0, count: int = 80
) -> Results:
    """Points by name: `sft`, `rlhf`, `uniform 0.5`; of each measure its mean. Noise is shared by the points."""
    points = []
    for name, means in rows.items():
        kind, _, alpha = name.partition(" ")
        measured = {
            m.name: exactly(mean, count, spread, i) for i, (m, mean) in enumerate(zip(measures, means, strict=True))
        }
        ratios = {"blocks.0": float(alpha)} if alpha else {}
        points.append(Point(name, kind, float(alpha) if alpha else None, ratios, measured))
    return Results({measure.name: measure for measure in measures}, tuple(points))
