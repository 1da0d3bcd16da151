"""How lm-evaluation-harness makes one number of a task's documents, as functions of sums over them.

An item is what a task's metric says of one document; None where it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amatax.evaluation.measures import bleu as corpus
from amatax.evaluation.measures._mean import ratio

Values = NDArray[np.float64]


class Aggregation(NamedTuple):
    """A way to one number.

    Attributes:
        sums: what one item adds.
        value: float64 (..., columns) -> (...).
        columns: of the sums.
    """

    sums: Callable[[Any], tuple[float, ...]]
    value: Callable[[Values], Values]
    columns: int = 2


def _one(item: Any) -> tuple[float, ...]:
    return float(item), 1.0


def _number(item: Any) -> tuple[float, ...]:
    """NaN counts for nothing."""
    return (0.0, 0.0) if math.isnan(item) else (float(item), 1.0)


def _weighted(item: Any) -> tuple[float, ...]:
    """(log-likelihood in nats, words or bytes)."""
    nats, weight = item
    return float(nats), float(weight)


def _counts(item: Any) -> tuple[float, ...]:
    """(right translation or several, what was generated); the harness keeps white space in front of both."""
    rights, given = item
    if not isinstance(given, str):  # of a list of answers the only one
        (given,) = given
    return corpus.counts(given, [rights] if isinstance(rights, str) else list(rights))


def _perplexity(sums: Values) -> Values:
    values: Values = np.exp(-ratio(sums))
    return values


def _bits(sums: Values) -> Values:
    values: Values = -ratio(sums) / math.log(2)
    return values


AGGREGATIONS = {
    "mean": Aggregation(_one, ratio),
    "nanmean": Aggregation(_number, ratio),
    "perplexity": Aggregation(_one, _perplexity),
    "weighted_perplexity": Aggregation(_weighted, _perplexity),
    "bits_per_byte": Aggregation(_weighted, _bits),
    "bleu": Aggregation(_counts, corpus.value, 2 * corpus.ORDER + 2),
}


def aggregation_of(function: Callable[..., Any]) -> str:
    """Which of them a function of the harness's is; "" if none: then no sums over documents are known to give it."""
    from lm_eval.api import metrics

    if function is np.mean:
        return "mean"
    return next((name for name in AGGREGATIONS if function is getattr(metrics, name, None)), "")
