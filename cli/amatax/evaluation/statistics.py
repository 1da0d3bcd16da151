"""How sure a measure is: standard errors, and a paired bootstrap over samples for intervals, differences and verdicts.

A standard error is the jackknife's (Efron and Stein, 1981): the value is computed again without each sample in turn. Of a mean it is
exactly s / sqrt(n), of a ratio or a BLEU the delta method's without its derivatives; it draws nothing, so it needs no seed.
Intervals are percentiles of a bootstrap: every point is drawn with the same samples, so that two of them are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError
from amatax.evaluation.results import Half, Measure, Measured, half_of
from amatax.fitting.bootstrap import FEWEST, Interval, percentile_interval, resampled_sums

FEWEST_APART = 6  # samples that differ: five all fall on one side by luck once in sixteen times (2 / 2^5)
AT_ONCE = 2**22  # numbers of one pass of the jackknife


def value_of(measure: Measure, measured: Measured) -> float:
    """The measure over all samples; NaN where it is not defined (no tokens)."""
    return float(_values(measure, measured.sums.sum(axis=0)))


def standard_error(measure: Measure, measured: Measured) -> float:
    """The jackknife's, in the measure's units; NaN of fewer than two samples."""
    count, columns = measured.sums.shape
    if count < 2:
        return float("nan")
    total, step = measured.sums.sum(axis=0), max(1, AT_ONCE // columns)
    without = [_values(measure, total - measured.sums[i : i + step]) for i in range(0, count, step)]
    values = np.concatenate(without)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))


def drawn_values(measure: Measure, points: Sequence[Measured], seed: int) -> NDArray[np.float64]:
    """The measure at several points, had other samples been drawn: float64 (DRAWS, points); in a draw all have the same samples.

    Raises:
        DataError: if the points were measured on different samples, or on none.
    """
    names = points[0].samples
    if not names:
        raise DataError(f"{measure.name}: there are no samples", "measure some")
    if any(point.samples != names for point in points):
        raise DataError(
            f"{measure.name}: the points were measured on different samples, and cannot be compared in pairs",
            "measure them in one run",
        )
    rows = np.concatenate([point.sums for point in points], axis=1)
    sums = resampled_sums(rows, seed)
    return _values(measure, sums.reshape(len(sums), len(points), -1))


def interval(measure: Measure, measured: Measured, seed: int = 0) -> Interval:
    """The measure at a point, between the 2.5 % and 97.5 % percentiles of its draws."""
    return percentile_interval(value_of(measure, measured), drawn_values(measure, [measured], seed)[:, 0])


def difference(measure: Measure, one: Measured, other: Measured, seed: int = 0, factor: float = 1.0) -> Interval:
    """One minus `factor` times the other, with a paired bootstrap interval.

    Raises:
        DataError: see `drawn_values`.
    """
    draws = drawn_values(measure, [one, other], seed)
    value = value_of(measure, one) - factor * value_of(measure, other)
    return percentile_interval(value, draws[:, 0] - factor * draws[:, 1])


def verdict(measure: Measure, one: Measured, other: Measured, seed: int = 0) -> str:
    """One against the other: better, worse, indistinguishable, or too few samples to tell.

    Where neither direction is better: more, less, or indistinguishable. False alarms: about one in twenty where both are equally good.
    """
    return in_words(measure, difference(measure, one, other, seed), len(one.samples), samples_apart(one, other))


def in_words(measure: Measure, apart: Interval, samples: int, differing: int) -> str:
    """What an interval of a difference says; see `verdict`."""
    if samples < FEWEST:
        return "too few"
    if differing < FEWEST_APART or not (apart.low > 0 or apart.high < 0):
        return "indistinguishable"
    if measure.higher is None:
        return "more" if apart.low > 0 else "less"
    return "better" if (apart.low > 0) == measure.higher else "worse"


def samples_apart(one: Measured, other: Measured) -> int:
    """How many samples add something else at the two points."""
    return int((one.sums != other.sums).any(axis=1).sum())


def half(measured: Measured, which: Half) -> Measured:
    """The part of the samples that is for choosing, or for reporting."""
    keep = [i for i, sample in enumerate(measured.samples) if half_of(sample) == which]
    responses = measured.responses
    return Measured(
        measured.sums[keep],
        tuple(measured.samples[i] for i in keep),
        None if responses is None else tuple(responses[i] for i in keep),
    )


def _values(measure: Measure, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(measure.value(sums), dtype=np.float64)
