"""Importing torch, which takes half of the time of a merge of 1 B parameters."""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


merges_only = False  # set by a command that uses torch for nothing else in this process


@contextmanager
def importing_torch() -> Iterator[None]:
    """Around the import of torch: quietly, and Ctrl-C waits for its end.

    An exception in the middle of torch's C++ part ends the process with SIGABRT. With `merges_only`, the parts that a merge
    does not use are left out, a third of the time: numpy, and the shape rules for tensors without data.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # which is not needed
            if merges_only and "torch" not in sys.modules and "numpy" not in sys.modules:
                import_when_used("torch._meta_registrations")
                sys.modules["numpy"] = None  # type: ignore[assignment]  # what Python has for "there is none"
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if "numpy" in sys.modules and sys.modules["numpy"] is None:
            del sys.modules["numpy"]


def import_when_used(name: str) -> None:
    """Let `import name` do nothing until an attribute of the module is asked for; the first one imports it in earnest.

    For modules that are imported for what they register. `importlib.util.LazyLoader` does not do: the first
    `inspect.getmodule` anywhere, which torch's own import calls, asks every module for its `__file__` and loads it.
    """
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
