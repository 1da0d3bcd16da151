"""Merge kernels: one file, one pure function of its name each. Adding a file adds the method.

A kernel is `(tensors, ratio, out=None, *, options) -> tensor`: `tensors` maps each role the module's NEEDS lists to a chunk of
that model's tensor (float32 or float64, all of one shape, on one device), `ratio` is the share of RLHF, and the keyword-only arguments, with their types and defaults, are the recipe's options.
`out` is memory that the result may use (it may be that of the last of NEEDS); a kernel may also ignore it. Nothing else is
written to. If some ratios give a model's tensor as it is, COPIES says which: {0.0: "sft"}. A kernel that reads half precision,
computes in float32 and rounds once says TAKES_HALF = True, and gets such chunks as they are on disk.

A method that `fit-ratios` may fit has a `slope(tensors, ratio, *, options)` beside its kernel: the derivative of its result in
the ratio, of the chunk's shape and dtype.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


@cache
def method_names() -> list[str]:
    """The methods there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def kernel(method: str) -> Callable[..., Any]:
    """The method's function."""
    return getattr(import_module(f"{__name__}.{method}"), method)


def method_slope(method: str) -> Callable[..., Any] | None:
    """The derivative of the method's function in the ratio; None if it has none."""
    return getattr(import_module(f"{__name__}.{method}"), "slope", None)


def method_needs(method: str) -> tuple[str, ...]:
    """The roles whose tensors the method reads."""
    return tuple(import_module(f"{__name__}.{method}").NEEDS)


def method_copies(method: str) -> dict[float, str]:
    """The ratios at which the result is one model's tensor, bit for bit, and whose."""
    return dict(getattr(import_module(f"{__name__}.{method}"), "COPIES", {}))


def takes_half(method: str) -> bool:
    """Whether the method does half precision itself, rounding once."""
    return bool(getattr(import_module(f"{__name__}.{method}"), "TAKES_HALF", False))


def method_options(method: str) -> dict[str, inspect.Parameter]:
    """The method's options by name."""
    parameters = inspect.signature(kernel(method)).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
