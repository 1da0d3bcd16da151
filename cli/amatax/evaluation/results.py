"""What was measured: points (merges, or models), and for each measure the sums that every sample adds to it.

A measure's value is a function of sums over samples: of (score, 1) for a mean, of (nats, tokens) for a likelihood, of counts of
n-grams for BLEU. So a standard error, a paired comparison or a half of the data is the same few lines for each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]  # (..., columns) -> value (...)


class Measure(NamedTuple):
    """What a column of the table is.

    Attributes:
        name: as the recipe calls it.
        kind: the measure, such as `nll`.
        higher: whether more is better; None where neither is (a length).
        value: sums over samples, float64 (..., columns) -> (...).
        settings: its options and its data's checksum: what makes two of them the same.
    """

    name: str
    kind: str
    higher: bool | None
    value: Callable[[Sums], NDArray[np.float64]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """One measure at one point.

    Attributes:
        sums: float64 (samples, columns): what each sample adds.
        samples: each sample's name, the same at every point: its place in the data file, from 1, or the task's own.
        responses: what was generated for each sample, where something was.
    """

    sums: NDArray[np.float64]
    samples: tuple[str, ...]
    responses: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Point:
    """A merge at some ratios, or a model that stands by itself.

    Attributes:
        name: unique, such as `uniform 0.3` or `fitted-3 0.4`.
        kind: `sft`, `rlhf`, `base`, `model`, `recipe`, `uniform`, `parts-input` (-middle, -output), `fitted-3`, `tax-aware-3`, `grid`,
            `surrogate` (a quadratic is fitted to it) or `proposed` (by that): points of one kind are a line in a picture.
        alpha: the mean of its ratios; None of a model.
        ratios: by group, as `amatax plan` names them (`blocks.0`, `head`); empty of a model.
        measured: by the measure's name.
    """

    name: str
    kind: str
    alpha: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A table: points down, measures across."""

    measures: Mapping[str, Measure]
    points: tuple[Point, ...]


Half = Literal["choose", "report"]


def half_of(sample: str) -> Half:
    """Which half of the data a sample is in: by a hash of its name, so that it is the same at every point and in every run."""
    return "choose" if hashlib.blake2b(sample.encode(), digest_size=1).digest()[0] & 1 else "report"
