"""A task of lm-evaluation-harness 0.4 (arXiv 2405.14782), asked and scored by the harness itself."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from amatax.evaluation.measures import Count, Flag
from amatax.evaluation.measures._aggregations import AGGREGATIONS
from amatax.evaluation.measures._mean import ratio as value

__all__ = ["Scored", "lm_eval", "value"]

NEEDS = ("task",)
HIGHER = None  # the task says
EXTRA = ("lm_eval", "datasets", "accelerate", "peft")
INSTALL = "lm-eval"


class Scored(NamedTuple):
    """What the harness says of one document.

    Attributes:
        item: of the metric: a number, or what the metric's aggregation takes; None if the metric says nothing of it.
        aggregation: one of measures._aggregations.
    """

    item: object
    aggregation: str


def lm_eval(
    seen: Scored,
    *,
    task: Annotated[str, Field(min_length=1)],
    metric: str | None = None,
    filter: str | None = None,
    limit: Count | None = None,
    num_fewshot: Annotated[int, Field(ge=0, strict=True)] | None = None,
    chat_template: Flag = False,
    max_new_tokens: Count | None = None,
    seed: Annotated[int, Field(ge=0, lt=1 << 32, strict=True)] = 1234,
) -> tuple[float, ...]:
    """(score, 1) of a metric that is a mean; what else is added up hangs on the metric's aggregation."""
    aggregation = AGGREGATIONS[seen.aggregation]
    return (0.0,) * aggregation.columns if seen.item is None else aggregation.sums(seen.item)
