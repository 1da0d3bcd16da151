"""Measures as written -> checked: known kinds, their options with defaults, their data files. Reads no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amatax.errors import Fault, MeasureError
from amatax.evaluation.measures import all_options, check_options, kinds, module_of, needs, options_model, summary
from amatax.recipes.loading import nearest, schema_faults
from amatax.recipes.measures import Wishes
from amatax.recipes.schema import Measure, Origin, expand_home

OWN = tuple(Measure.model_fields)
HINT = "docs/measures.md lists every kind with its options"


@dataclass(frozen=True)
class Declared:
    """A measure that is asked for.

    Attributes:
        name: of its column.
        kind: such as `nll`.
        data: the JSONL file; None of a kind that has its own data.
        higher: whether more is better; None where neither is.
        options: of its score and of what that needs, defaults filled in.
        where: file:line (key) of it, for messages.
        folder: what other files of its options are relative to.
    """

    name: str
    kind: str
    data: Path | None
    higher: bool | None
    options: dict[str, Any]
    where: str
    folder: Path

    @property
    def needs(self) -> tuple[str, ...]:
        """See amatax.evaluation.measures."""
        return needs(self.kind)


def declared_measures(wishes: Wishes) -> list[Declared]:
    """Check what a recipe or a file asks for, in its order.

    Raises:
        MeasureError: with every fault; each names the line.
    """
    found: list[Declared] = []
    faults: list[Fault] = []
    for name, wish in wishes.measures.items():
        more = list(_faults(name, wish, wishes.origin))
        faults += more
        if not more:
            options = options_model(wish.measure).model_validate(wish.options).model_dump()
            higher = wish.higher if wish.higher is not None else module_of(wish.measure).HIGHER
            data = wishes.folder / expand_home(wish.data) if wish.data is not None else None
            where = wishes.origin.where(("measures", name))
            found.append(Declared(name, wish.measure, data, higher, options, where, wishes.folder))
    if faults:
        raise MeasureError(faults)
    return found


def _faults(name: str, wish: Measure, origin: Origin) -> Iterator[Fault]:
    """What is wrong with one of them."""
    at: tuple[str, ...] = ("measures", name)
    if wish.measure not in kinds():
        message = f"there is no measure {wish.measure!r}"
        yield Fault(message, origin.where((*at, "measure")), nearest(wish.measure, kinds()))
        return
    own_data = "task" in needs(wish.measure)
    if wish.data is None and not own_data:
        yield Fault("this key is needed", origin.where((*at, "data")), "add `data:`, a JSONL file")
    if wish.data is not None and own_data:
        yield Fault(f"{wish.measure} takes no data: its task has some", origin.where((*at, "data")), "leave `data` out")
    own = module_of(wish.measure).HIGHER
    if own is not None and wish.higher is not None and wish.higher != own:
        message = f"of {wish.measure} {'more' if own else 'less'} is better, always"
        yield Fault(message, origin.where((*at, "higher")), "leave `higher` out")
    known = all_options(wish.measure)
    for key in wish.options:
        if key not in known:
            yield Fault("unknown key", origin.where((*at, key)), nearest(key, [*OWN, *known]))
    options = {key: value for key, value in wish.options.items() if key in known}
    try:
        checked = options_model(wish.measure).model_validate(options)
    except ValidationError as error:
        yield from schema_faults(error, origin, at, HINT)
    else:
        if message := check_options(wish.measure, checked.model_dump()):
            yield Fault(message, origin.where(at), HINT)
    yield from _missing(wish.measure, origin.where((*at, "measure")))


def _missing(kind: str, where: str) -> Iterator[Fault]:
    """Libraries that a kind needs and that are not installed."""
    module = module_of(kind)
    libraries: Sequence[str] = getattr(module, "EXTRA", ())
    if missing := [library for library in libraries if find_spec(library) is None]:
        extra = getattr(module, "INSTALL", "evaluate")
        yield Fault(f"{kind} needs {', '.join(missing)}", where, f'pip install "amatax[{extra}]"')


def kinds_and_options() -> dict[str, tuple[str, dict[str, Any]]]:
    """Of every kind its line of description and its options as JSON Schema."""
    return {kind: (summary(kind), options_model(kind).model_json_schema().get("properties", {})) for kind in kinds()}
