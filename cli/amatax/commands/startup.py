"""Importing torch for a merge takes two thirds of the time: without the parts that a merge does not use."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def lean_torch() -> Iterator[None]:
    """torch is imported without numpy and without its shape rules for tensors that have no data (a merge has none)."""
    import_when_used("torch._meta_registrations")
    blocked = "numpy" not in sys.modules
    if blocked:
        sys.modules["numpy"] = None  # type: ignore[assignment]  # what Python has for "there is none"
    try:
        yield
    finally:
        if blocked:
            sys.modules.pop("numpy", None)


def import_when_used(name: str) -> None:
    """Let `import name` do nothing until an attribute of the module is asked for; the first one imports it in earnest.

    For modules that are imported for what they register. `importlib.util.LazyLoader` does not do: the first
    `inspect.getmodule` anywhere, which torch's own import calls, asks every module for its `__file__` and loads it.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Postponed(name))


class _Postponed(MetaPathFinder, Loader):
    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if name == self.name else None
        if found is None or found.submodule_search_locations is not None:
            return None  # not this one, or a package: its submodules would need it
        spec = ModuleSpec(name, self, origin=found.origin)
        spec.has_location = True  # so that `inspect` finds a file
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__finder__"] = self


class _StandIn(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            sys.meta_path.remove(self.__dict__["__finder__"])
            del sys.modules[self.__name__]
            importlib.import_module(self.__name__)
        return getattr(sys.modules[self.__name__], attribute)
