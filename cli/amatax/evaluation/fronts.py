"""The reward-tax front: which measures gain by RLHF and which pay, the points that none beats, the area under them, and its knee.

A measure is normalised to the two models that are merged: on the worse of them it is 0, on the better one 1. The straight line between
them is what a merge is that buys each share of the gain with as large a share of the tax.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError
from amatax.evaluation.results import Measure, Point, Results
from amatax.evaluation.statistics import drawn_values, standard_error, value_of
from amatax.fitting.bootstrap import Interval, percentile_interval

Side = Literal["gain", "tax"]
STANDING = ("base", "sft", "rlhf", "model")  # kinds of points that are no merge


class Corners(NamedTuple):
    """A measure on the two models that are merged."""

    sft: float
    rlhf: float

    def side(self, measure: Measure) -> Side | None:
        """What RLHF did to it: a gain, a tax, or nothing (also where neither direction is better)."""
        if measure.higher is None or self.sft == self.rlhf or not np.isfinite(self.rlhf - self.sft):
            return None
        return "gain" if (self.rlhf > self.sft) == measure.higher else "tax"

    def normalised(self, measure: Measure, values: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """0 on the worse of the two models and 1 on the better one; beyond them it may be less, or more."""
        worse, better = (self.sft, self.rlhf) if self.side(measure) == "gain" else (self.rlhf, self.sft)
        return (np.asarray(values, dtype=np.float64) - worse) / (better - worse)


class Area(NamedTuple):
    """A hypervolume: of all draws the interval, and the points that were counted."""

    interval: Interval
    points: int


def is_merge(point: Point) -> bool:
    """Whether a point is a merge, not a model that stands by itself."""
    return point.kind not in STANDING


def the_point(results: Results, kind: str) -> Point:
    """The point of SFT, or of RLHF.

    Raises:
        DataError: if it was not measured.
    """
    found = next((point for point in results.points if point.kind == kind), None)
    if found is None:
        raise DataError(
            f"the {kind.upper()} model was not measured", "a front begins and ends at the two models: measure both"
        )
    return found


def constant(results: Results) -> dict[str, float]:
    """The measures that have one value at every point, and so tell no merge from another, with that value (NaN: it has none)."""
    found: dict[str, float] = {}
    for name, measure in results.measures.items():
        values = np.array([value_of(measure, p.measured[name]) for p in results.points if name in p.measured])
        if len(values) > 1 and (np.isnan(values).all() or (values == values[0]).all()):
            found[name] = float(values[0])
    return found


def without_error(results: Results) -> list[str]:
    """The measures that differ between points, but of which at no point any sample differs from another."""
    return [
        name
        for name, measure in results.measures.items()
        if name not in constant(results)
        and all(standard_error(measure, p.measured[name]) == 0 for p in results.points if name in p.measured)
    ]


def corners(results: Results) -> dict[str, Corners]:
    """Every measure that both models have, on them."""
    sft, rlhf = the_point(results, "sft"), the_point(results, "rlhf")
    return {
        name: Corners(value_of(measure, sft.measured[name]), value_of(measure, rlhf.measured[name]))
        for name, measure in results.measures.items()
        if name in sft.measured and name in rlhf.measured
    }


def sides(measures: Mapping[str, Measure], ends: Mapping[str, Corners]) -> dict[Side, list[str]]:
    """The measures that gain by RLHF and those that pay, in the order of the table."""
    found: dict[Side, list[str]] = {"gain": [], "tax": []}
    for name, corner in ends.items():
        if (side := corner.side(measures[name])) is not None:
            found[side].append(name)
    return found


def pairs(results: Results) -> list[tuple[str, str]]:
    """Each measure that gains with each that pays: (gain, tax)."""
    found = sides(results.measures, corners(results))
    return [(gain, tax) for gain in found["gain"] for tax in found["tax"]]


def pareto(values: NDArray[np.float64]) -> list[int]:
    """The points that none beats: none is as good everywhere and better somewhere. Equal points are all on the front.

    Args:
        values: (points, measures), more is better; a point with NaN is on no front.
    """
    known = [i for i, one in enumerate(values) if np.isfinite(one).all()]
    known.sort(key=lambda i: tuple((-values[i]).tolist()))  # what beats a point comes before it
    best: list[int] = []
    for i in known:
        others = values[best]
        if not np.any(np.all(others >= values[i], axis=1) & np.any(others > values[i], axis=1)):
            best.append(i)
    return sorted(best)


def front(results: Results, names: Sequence[str], kinds: Collection[str] = ()) -> list[Point]:
    """The points that none beats in several measures, each by its own direction; in the order of the first one, worst first.

    Args:
        results: those without one of the measures are left out.
        names: of measures with a direction.
        kinds: only points of these; none: all.
    """
    points = [p for p in results.points if set(names) <= p.measured.keys() and (not kinds or p.kind in kinds)]
    signs = [1.0 if results.measures[name].higher else -1.0 for name in names]
    values = np.array(
        [
            [sign * value_of(results.measures[n], p.measured[n]) for n, sign in zip(names, signs, strict=True)]
            for p in points
        ]
    ).reshape(len(points), len(names))
    best = pareto(values)
    return [points[i] for i in sorted(best, key=lambda i: (*values[i].tolist(), points[i].name))]


def area(gain: NDArray[np.float64], tax: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hypervolume of normalised points above the reference point (0, 0): as poor as SFT in the gain, as RLHF in the tax.

    Both models themselves bound no area; a line of many points straight from one to the other bounds 0.5; without any tax it is 1.

    Args:
        gain, tax: float64 (..., points); what lies below 0 counts as 0.

    Returns:
        float64 (...).
    """
    order = np.argsort(-gain, axis=-1, kind="stable")
    x = np.clip(np.take_along_axis(gain, order, -1), 0, None)
    y = np.maximum.accumulate(np.clip(np.take_along_axis(tax, order, -1), 0, None), axis=-1)
    below = np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    return np.asarray(((x - below) * y).sum(axis=-1))


def hypervolume(results: Results, gain: str, tax: str, points: Sequence[Point], seed: int = 0) -> Area:
    """The area under several points, normalised to SFT and RLHF, with its bootstrap interval.

    In every draw the two models are drawn, too. More points bound a larger area: compare it only with as many others.

    Raises:
        DataError: if the measures do not tell SFT from RLHF, one as a gain and one as a tax, or points are not comparable.
    """
    value, draws = hypervolumes(results, gain, tax, [points], seed)
    return Area(percentile_interval(value[0], draws[:, 0]), len(points))


def hypervolume_difference(
    results: Results, gain: str, tax: str, one: Sequence[Point], other: Sequence[Point], seed: int = 0
) -> Interval:
    """The area under one set of points minus that under the other, drawn in pairs; see `hypervolume`."""
    value, draws = hypervolumes(results, gain, tax, [one, other], seed)
    return percentile_interval(value[0] - value[1], draws[:, 0] - draws[:, 1])


def hypervolumes(
    results: Results, gain: str, tax: str, sets: Sequence[Sequence[Point]], seed: int
) -> tuple[list[float], NDArray[np.float64]]:
    """The area under each set of points, and in every draw: float64 (draws, sets). One draw has the same samples for all of them, so
    that any sum or difference of areas has its interval; see `hypervolume`.

    Raises:
        DataError: see `hypervolume`.
    """
    sft, rlhf = the_point(results, "sft"), the_point(results, "rlhf")
    both = [sft, rlhf, *(point for points in sets for point in points)]
    value, draws = {}, {}
    for name, side in ((gain, "gain"), (tax, "tax")):
        measure = results.measures[name]
        here = [point.measured[name] for point in both]
        values = np.array([value_of(measure, measured) for measured in here])
        corner = Corners(*values[:2].tolist())
        if corner.side(measure) != side:
            message = f"{name} is no {side}: SFT has {corner.sft:.4g} and RLHF {corner.rlhf:.4g}"
            raise DataError(message, "an area needs a measure that RLHF betters and one that it worsens")
        drawn = drawn_values(measure, here, seed)
        first, last = (0, 1) if side == "gain" else (1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw in which the two models are alike
            draws[side] = (drawn - drawn[:, [first]]) / (drawn[:, [last]] - drawn[:, [first]])
        value[side] = corner.normalised(measure, values)
    areas, drawn_areas, begin = [], [], 2
    usable = np.isfinite(draws["gain"]).all(axis=1) & np.isfinite(draws["tax"]).all(axis=1)
    for points in sets:
        here_ = slice(begin, begin + len(points))
        begin += len(points)
        areas.append(float(area(value["gain"][here_], value["tax"][here_])))
        drawn_areas.append(area(draws["gain"][usable, here_], draws["tax"][usable, here_]))
    return areas, np.stack(drawn_areas, axis=1)
