"""Measures: one file, one pure score function of its name each. Adding a file adds the kind.

A score is `(seen, *, options) -> sums`: what one sample adds to the measure, a tuple of numbers; `value(sums)` makes of sums over
samples, float64 (..., columns), the measure's value (...). Keyword-only arguments, with their types and defaults, are the
options in the recipe. NEEDS says what `seen` is, and what the data must hold:

    "likelihood"   Likelihood of the response in the data: `prompt`, `response`
    "divergence"   Likelihood whose nats are KL(SFT || model) along a response of SFT: `prompt`, and `response` or SFT answers first
    "choices"      Choices, a likelihood each: `prompt`, `choices`, `answer`
    "answer"       Answer, generated: `prompt`
    "references"   beside "answer": `response`, or `references` where several are right
    "reward"       beside "answer": a reward model, or a function from the command line
    "task"         Scored, by a task of lm-evaluation-harness, which has its own data: `value` then hangs on the task's metric

HIGHER is whether more is better; None leaves it to the recipe's `higher`. EXTRA names the libraries beyond transformers that it
needs, INSTALL the extra of amatax that has them (`evaluate` if it is not there). What options forbid together a `check(options) -> message` says. Files that begin with _ are no measures.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]

# options of what a measure needs, beside those of its score
RAW: dict[str, tuple[Any, Any]] = {"raw": (Flag, False)}
WHERE: dict[str, tuple[Any, Any]] = {"where": (dict[str, str | int | float | bool] | None, None)}
DRAWN: dict[str, tuple[Any, Any]] = {
    "max_new_tokens": (Count, 256),
    "temperature": (Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)], 0.0),
    "top_p": (Annotated[float, Field(gt=0, le=1, strict=True)], 1.0),
    "seed": (Annotated[int, Field(ge=0, lt=1 << 63, strict=True)], 0),
}
OPTIONS: dict[str, dict[str, tuple[Any, Any]]] = {
    "likelihood": {**RAW, **WHERE},
    "divergence": {**RAW, **WHERE, **DRAWN, "temperature": (DRAWN["temperature"][0], 1.0)},  # SFT's own distribution
    "choices": {**RAW, **WHERE},
    "answer": {**RAW, **WHERE, **DRAWN},
    "references": {},
    "reward": {"model": (str | None, None)},
    "task": {},
}


class Likelihood(NamedTuple):
    """A response under a model: nats summed over its tokens, and how many those are."""

    nats: float
    tokens: int


class Choices(NamedTuple):
    """Every choice of a sample under a model, and the index of the right one."""

    likelihoods: tuple[Likelihood, ...]
    texts: tuple[str, ...]
    answer: int


class Answer(NamedTuple):
    """What a model answered.

    Attributes:
        response: the text.
        tokens: of it, with the one that ended it.
        references: the right answers; empty if the measure needs none.
        reward: if the measure needs one.
    """

    response: str
    tokens: int
    references: tuple[str, ...] = ()
    reward: float = 0.0


@cache
def kinds() -> list[str]:
    """The kinds of measures there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def module_of(kind: str) -> Any:
    """A kind's module."""
    return import_module(f"{__name__}.{kind}")


def needs(kind: str) -> tuple[str, ...]:
    """What it needs of a model and of the data."""
    return tuple(module_of(kind).NEEDS)


def summary(kind: str) -> str:
    """What it measures, in one line."""
    return (module_of(kind).__doc__ or "").strip().partition("\n")[0]


def score_options(kind: str) -> dict[str, tuple[Any, Any]]:
    """The options of its score: name -> (type, default); ... where there is none."""
    parameters = inspect.signature(getattr(module_of(kind), kind)).parameters.values()
    own = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in own}


def all_options(kind: str) -> dict[str, tuple[Any, Any]]:
    """Those, and the options of what it needs."""
    return {**score_options(kind), **{name: both for need in needs(kind) for name, both in OPTIONS[need].items()}}


def options_model(kind: str) -> type[BaseModel]:
    """What checks them."""
    fields: dict[str, Any] = all_options(kind)
    module = module_of(kind).__name__
    return create_model(kind, __config__=ConfigDict(extra="forbid"), __module__=module, **fields)


def bind(kind: str, options: Mapping[str, Any]) -> tuple[Callable[..., tuple[float, ...]], Callable[..., Any]]:
    """(score, value) with those of the options that are the score's."""
    module, own = module_of(kind), score_options(kind)
    return partial(getattr(module, kind), **{name: options[name] for name in own}), module.value


def check_options(kind: str, options: Mapping[str, Any]) -> str:
    """What is wrong with options that are right one by one; "" if nothing is."""
    check = getattr(module_of(kind), "check", None)
    return str(check(**options)) if check is not None else ""
