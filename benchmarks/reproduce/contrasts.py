"""Differences between ways of merging: in a measure at the same ratios, and in the area under their points.

Positive is always better. Every difference is drawn in pairs: in one draw all points have the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amatax.evaluation.fronts import hypervolumes, the_point
from amatax.evaluation.results import Point, Results
from amatax.evaluation.statistics import drawn_values, value_of
from amatax.fitting.bootstrap import LEVEL, percentile_interval
from benchmarks.reproduce.table import Table
from benchmarks.reproduce.verdicts import Contrast

GAIN, TAX = "reward", "abilities"


def between_points(
    results: Results, measure: str, pairs: Sequence[Sequence[tuple[Point, Point]]], less: bool = False
) -> Contrast:
    """The mean difference over pairs of points, each seed's pairs by themselves.

    Args:
        measure: whose direction says what is better; without one, more is.
        pairs: (seeds, ratios) of (one, other).
        less: less is better where the measure does not say.
    """
    what = results.measures[measure]
    sign = -1.0 if what.higher is False or less else 1.0
    points = [point.measured[measure] for seed in pairs for pair in seed for point in pair]
    shape = (len(pairs), -1, 2)
    values = np.array([value_of(what, measured) for measured in points]).reshape(shape)
    draws = drawn_values(what, points, seed=0).reshape(-1, *values.shape)
    return _contrast(sign * (values[..., 0] - values[..., 1]).mean(-1), sign * (draws[..., 0] - draws[..., 1]).mean(-1))


def of_ways(table: Table, measure: str, one: str, other: str, ratios: Sequence[float]) -> Contrast:
    """One way of merging minus another at the same ratios; the mean over the ratios."""
    seeds = table.seeds(one, other)
    pairs = [list(zip(table.points(one, s, ratios), table.points(other, s, ratios), strict=True)) for s in seeds]
    return between_points(table.results, measure, pairs)


def with_model(table: Table, measure: str, way: str, ratio: float, model: str) -> Contrast:
    """A way of merging at one ratio minus SFT or RLHF."""
    end = the_point(table.results, model)
    pairs = [[(table.points(way, seed, [ratio])[0], end)] for seed in table.seeds(way)]
    return between_points(table.results, measure, pairs)


def of_areas(
    table: Table,
    one: Sequence[Sequence[Point]],
    other: Sequence[Sequence[Point]] | float,
    tax: str = TAX,
    looks: int = 1,
) -> Contrast:
    """The area under one set of points minus that under another, or minus a number; each seed's sets by themselves.

    Args:
        looks: how many such differences a claim may pick from: its intervals are as much wider (Bonferroni).
    """
    seeds = len(one)
    if isinstance(other, float):
        values, draws = hypervolumes(table.results, GAIN, tax, one, seed=0)
        return _contrast(np.array(values) - other, draws - other, looks)
    values, draws = hypervolumes(table.results, GAIN, tax, [*one, *other], seed=0)
    return _contrast(np.array(values[:seeds]) - np.array(values[seeds:]), draws[:, :seeds] - draws[:, seeds:], looks)


def of_fronts(table: Table, one: str, other: str, ratios: Sequence[float], tax: str = TAX, looks: int = 1) -> Contrast:
    """The area under one way's points minus that under the other's, both at the same ratios."""
    seeds = table.seeds(one, other)
    ours, theirs = ([table.points(way, seed, ratios) for seed in seeds] for way in (one, other))
    return of_areas(table, ours, theirs, tax, looks)


def area_of(table: Table, way: str, ratios: Sequence[float] = (), tax: str = TAX) -> Contrast:
    """The area under a way's points: 0.5 under the whole straight line from SFT to RLHF."""
    return of_areas(table, [table.points(way, seed, ratios) for seed in table.seeds(way)], 0.0, tax)


def _contrast(values: NDArray[np.float64], draws: NDArray[np.float64], looks: int = 1) -> Contrast:
    """Of each seed's number, and its draws (draws, seeds)."""
    level = 1 - (1 - LEVEL) / looks
    return Contrast(percentile_interval(float(values.mean()), draws.mean(-1), level), tuple(values.tolist()))
