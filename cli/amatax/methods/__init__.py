"""Merge kernels: one file, one pure function of its name each. Adding a file adds the method.

A kernel is `(tensors, ratio, out=None, *, options) -> tensor`: `tensors` maps each role the module's NEEDS lists to a chunk of
that model's tensor (float32 or float64, all of one shape, on one device), `ratio` is the share of RLHF, and the keyword-only arguments, with their types and defaults, are the recipe's options.
`out` is memory that the result may use (it may be that of the last of NEEDS); a kernel may also ignore it. Nothing else is
written to. If some ratios give a model's tensor as it is, COPIES says which: {0.0: "sft"}. A kernel that reads half precision,
computes in float32 and rounds once says TAKES_HALF = True, and gets such chunks as they are on disk. One whose
`prepare`, and whose kernel if it does not take half precision anyway, widens bfloat16 faster than torch does, says WIDENS = True,
and gets such chunks on the CPU; its kernel then gives float32, or fills `out`, which has the output's dtype, rounding once.

A method that must know the whole tensor first (a threshold, a norm) has a `prepare(chunks, ratio, *, options) -> stats` beside
its kernel: `chunks()` goes through the tensor once more each time it is called (see `Chunks`), and the kernel gets what came of it
as `stats`. Where that is nearly always the same, `presume() -> (stats, look)` says what: such a tensor is gone through once, on the
CPU, while `look(chunk, out) -> bool` sees each chunk as it is on disk (`out` is memory of the chunk's length that it may use); once
it is not sure, the tensor is begun anew, with `prepare`.
A kernel may ask for `chunk`, where it stands: random numbers are a function of that, so that no order changes them. Options have
types that pydantic checks; what they forbid together a `check(options) -> message` says. Where they make it another method, without
options and with fewer models, `same_as(options) -> method` names that. Files that begin with _ are no methods.
Another package adds one by an entry point of the group `amatax.methods`: `NAME = "package.module"`, a module as here.

A method that `fit-ratios` may fit has a `slope(tensors, ratio, *, options)` beside its kernel: the derivative of its result in
the ratio, of the chunk's shape and dtype.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

Share = Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
GROUP = "amatax.methods"
GIVEN = ("stats", "chunk")  # keyword arguments of a kernel that are no options


@dataclass(frozen=True)
class Chunks:
    """A whole tensor, chunk by chunk."""

    count: int  # its elements
    through: Callable[[int, int], Iterator[Mapping[str, Any]]]

    def __call__(self, every: int = 1, first: int = 0) -> Iterator[Mapping[str, Any]]:
        """Go through it once: role -> its next elements.

        Args:
            every: for a sample, one element in so many of each chunk.
            first: the element to begin with.
        """
        return self.through(every, first)


class BoundMethod(NamedTuple):
    """A method with its options."""

    kernel: Callable[..., Any]
    prepare: Callable[..., Any] | None  # what it does with the whole tensor first
    presume: Callable[..., Any] | None  # what that nearly always gives, and how to look whether it does
    takes_half: bool  # it does half precision itself, rounding once
    widens: bool  # it widens bfloat16 on the CPU itself
    wants_chunk: bool  # its kernel asks where its chunk stands


class Chunk(NamedTuple):
    """Where a chunk stands in its tensor."""

    name: str  # the tensor's, on disk
    first: int  # the index of the chunk's first element


@cache
def method_names() -> list[str]:
    """The methods there are, sorted: those of this package, and those of others (entry points of the group amatax.methods)."""
    return sorted({*_own(), *(point.name for point in entry_points(group=GROUP))})


@cache
def method_module(method: str) -> Any:
    """A method's module.

    Raises:
        ModuleNotFoundError: if there is no such method.
        ImportError: if another package's cannot be used.
    """
    if method in _own():
        return import_module(f"{__name__}.{method}")
    for point in entry_points(group=GROUP, name=method):
        try:
            module = point.load()
            if not callable(getattr(module, method, None)) or not getattr(module, "NEEDS", None):
                raise TypeError(f"{point.value} has no function {method!r}, or no NEEDS")
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise ImportError(f"the method {method!r} of the package {package} cannot be used: {error}") from error
        return module
    raise ModuleNotFoundError(f"no method {method!r}")


def _own() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def kernel(method: str) -> Callable[..., Any]:
    """The method's function."""
    return getattr(method_module(method), method)


def bind(method: str, options: Mapping[str, Any]) -> BoundMethod:
    """The method with these options."""
    function = kernel(method)
    bound = partial(function, **options) if options else function
    module = method_module(method)
    half, widens = (bool(getattr(module, flag, False)) for flag in ("TAKES_HALF", "WIDENS"))
    presume = getattr(module, "presume", None)
    return BoundMethod(bound, method_prepare(method, options), presume, half, widens, wants_chunk(function))


def simplest(method: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method that gives the same bytes with these options, from fewer models; the method itself, if there is none."""
    same_as = getattr(method_module(method), "same_as", None)
    other = same_as(**{**defaults(method), **options}) if same_as is not None else None
    return (other, {}) if other else (method, dict(options))


def summary(method: str) -> str:
    """What the method does, in one line."""
    return (method_module(method).__doc__ or "").strip().partition("\n")[0]


def method_slope(method: str) -> Callable[..., Any] | None:
    """The derivative of the method's function in the ratio; None if it has none."""
    return getattr(method_module(method), "slope", None)


def method_needs(method: str) -> tuple[str, ...]:
    """The roles whose tensors the method reads."""
    return tuple(method_module(method).NEEDS)


def method_copies(method: str) -> dict[float, str]:
    """The ratios at which the result is one model's tensor, bit for bit, and whose."""
    return dict(getattr(method_module(method), "COPIES", {}))


def method_prepare(method: str, options: Mapping[str, Any]) -> Callable[..., Any] | None:
    """What the method does with the whole tensor first, with those of the options that it takes; None if nothing."""
    function = getattr(method_module(method), "prepare", None)
    if function is None:
        return None
    taken = inspect.signature(function).parameters
    return partial(function, **{name: value for name, value in options.items() if name in taken})


def wants_chunk(function: Callable[..., Any]) -> bool:
    """Whether a kernel asks where its chunk stands."""
    return "chunk" in inspect.signature(function).parameters


def method_options(method: str) -> dict[str, inspect.Parameter]:
    """The method's options by name."""
    parameters = inspect.signature(kernel(method)).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY and n not in GIVEN}


def defaults(method: str) -> dict[str, Any]:
    """What the method's options are where nothing is said."""
    return {name: option.default for name, option in method_options(method).items()}


def options_model(method: str) -> type[BaseModel]:
    """What checks the method's options."""
    fields: dict[str, Any] = {name: (p.annotation, p.default) for name, p in method_options(method).items()}
    return create_model(method, __config__=ConfigDict(extra="forbid"), __module__=kernel(method).__module__, **fields)


def check_options(method: str, options: Mapping[str, Any]) -> str:
    """What is wrong with options that are right one by one; "" if nothing is."""
    check = getattr(method_module(method), "check", None)
    return str(check(**options)) if check is not None else ""
