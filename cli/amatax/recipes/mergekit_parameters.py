"""mergekit's parameters: which value a tensor gets, by scope, filter and gradient, in exact fractions.

A setting is a scalar, a gradient (a list of scalars, spread evenly over the layers of its slice), or a list of either with a
`filter`, a part of the tensor's name; the first that fits decides. The nearest scope that has a value wins: the model in its
slice, the slice, the configuration. Read off mergekit 0.1.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter, ValidationError

from amatax.errors import Fault
from amatax.recipes.schema import Origin

Path_ = tuple[str | int, ...]
Value = Fraction | bool
FLAGS = ("normalize", "rescale", "int8_mask", "filter_wise")
LARGEST = 3.4028234663852886e38  # of float32, which mergekit keeps its weights in; sums and quotients of such are still floats
ANY = (None, "*", "")  # filters that every tensor fits


@dataclass(frozen=True)
class Method:
    """What mergekit takes for a method: parameters looked up once, and for each model; None is a value that must be given."""

    shared: Mapping[str, Value | None]
    each: Mapping[str, Value | None]
    elects: bool = False  # the sign election of TIES
    drops: bool = False  # it takes a density


def _delta(*, normalize: bool, rescale: bool = False, elects: bool = False, drops: bool = True, **each: str) -> Method:
    shared: dict[str, Value | None] = {
        "normalize": normalize,
        "rescale": rescale,
        "lambda": Fraction(1),
        "int8_mask": False,
    }
    own = {name: Fraction(value) for name, value in each.items()}
    return Method(shared, {"weight": None, "density": Fraction(1), **own}, elects, drops)


METHODS: dict[str, Method] = {
    "linear": Method({"normalize": True}, {"weight": None}),
    "slerp": Method({"t": None}, {}),
    "task_arithmetic": _delta(normalize=False, drops=False),
    "model_stock": Method({"filter_wise": False}, {}),
    "ties": _delta(normalize=True, elects=True),
    "dare_linear": _delta(normalize=False, rescale=True),
    "dare_ties": _delta(normalize=False, rescale=True, elects=True),
    "breadcrumbs": _delta(normalize=False, gamma="0.01"),
    "breadcrumbs_ties": _delta(normalize=False, elects=True, gamma="0.01"),
    "della": _delta(normalize=True, rescale=True, elects=True, epsilon="0.15"),
    "della_linear": _delta(normalize=False, rescale=True, epsilon="0.15"),
}


@dataclass(frozen=True)
class Setting:
    """(filter, values) pairs, first fit first; one value is a scalar, none says nothing."""

    choices: tuple[tuple[str | None, tuple[Value, ...]], ...]

    def at(self, t: Fraction, fitting: frozenset[str]) -> Value | None:
        """The value at a place of the slice (0 is its first layer, 1 its last) for a tensor that fits these filters."""
        for wanted, values in self.choices:
            if wanted in ANY or wanted in fitting:
                return _interpolate(values, t) if values else None
        return None


def _interpolate(values: tuple[Value, ...], t: Fraction) -> Value:
    if any(isinstance(value, bool) for value in values):
        return values[int(float(t) * (len(values) - 1))]  # in floating point, as there
    scaled = t * (len(values) - 1)
    first = math.floor(scaled)
    second = min(first + 1, len(values) - 1)
    return values[first] + (scaled - first) * (Fraction(values[second]) - values[first])


@dataclass(frozen=True)
class Scope:
    """The parameters that stand at one place of the configuration, and where."""

    settings: Mapping[str, Setting]
    at: Path_


def read_scope(raw: Any, method: str, at: Path_, origin: Origin, faults: list[Fault]) -> Scope:
    """The settings of a `parameters` mapping that the method knows; others have no effect in mergekit."""
    known = METHODS[method]
    if raw is not None and not isinstance(raw, dict):
        faults.append(Fault("`parameters` is a mapping from names to values", origin.where(at), "weight: 0.5"))
    found = {}
    for name, value in raw.items() if isinstance(raw, dict) else ():
        if name in known.shared or name in known.each:
            try:
                found[name] = Setting(_choices(value, bool if name in FLAGS else float))
            except ValueError as error:
                hint = "a number, a list of them over the layers, or items {filter: mlp, value: 0.5}"
                faults.append(Fault(f"`{name}`: {error}", origin.where((*at, name)), hint))
    return Scope(found, at)


def _choices(raw: Any, kind: type) -> tuple[tuple[str | None, tuple[Value, ...]], ...]:
    if isinstance(raw, dict):
        raw = [raw]
    if isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        pairs = []
        for item in raw:
            if not isinstance(item, dict):
                raise ValueError(f"{item!r} stands among items with filters: write {{value: {item}}}")
            if "value" not in item or not isinstance(item.get("filter"), str | None):
                raise ValueError("an item is {filter: part of a tensor's name, value: ...}")
            pairs.append((item.get("filter"), _values(item["value"], kind)))
        return tuple(pairs)
    return ((None, _values(raw, kind)),)


def _values(raw: Any, kind: type) -> tuple[Value, ...]:
    """A scalar or a gradient; numbers may be written as text, and true is 1."""
    found: list[Value] = []
    for item in raw if isinstance(raw, list) else [raw]:
        if not isinstance(item, bool | int | float | str):
            raise ValueError(f"{item!r} is no value")
        try:
            value: Any = TypeAdapter(kind).validate_python(item)
        except ValidationError:
            raise ValueError(f"{item!r} is {'neither true nor false' if kind is bool else 'no number'}") from None
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{item!r} is not finite")
        if kind is float and abs(value) > LARGEST:
            raise ValueError(f"{item!r} is more than float32 holds ({LARGEST:.3g})")
        found.append(value if kind is bool else Fraction(repr(value)))
    return tuple(found)


def look_up(name: str, scopes: Iterable[Scope], t: Fraction, fitting: frozenset[str]) -> Value | None:
    """The value of the nearest scope that has one; None if none has."""
    for scope in scopes:
        if name in scope.settings and (value := scope.settings[name].at(t, fitting)) is not None:
            return value
    return None


def filters(scopes: Iterable[Scope]) -> list[str]:
    """Every filter, once, as they are written."""
    found = [
        wanted for scope in scopes for setting in scope.settings.values() for wanted, _ in setting.choices if wanted
    ]
    return [wanted for wanted in dict.fromkeys(found) if wanted not in ANY]


def has_gradient(scopes: Iterable[Scope]) -> Scope | None:
    """A scope in which something changes over the layers."""
    for scope in scopes:
        for setting in scope.settings.values():
            if any(len(set(values)) > 1 for _, values in setting.choices):
                return scope
    return None
