"""What every verb takes: a recipe in any form, and somebody to watch."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Recipe

RecipeSource = Recipe | str | PathLike[str] | Mapping[str, Any]


class Watcher:
    """What a caller may want to see of a long job; by default nothing.

    `start(total)` is told the bytes that will be read, `advance(n)` every piece (from any thread), `wait()` is called now and
    then from the calling thread, `say(text)` gets a line for the user.
    """

    def start(self, total: int) -> None: ...
    def advance(self, n: int) -> None: ...
    def wait(self) -> None: ...
    def say(self, text: str) -> None: ...


def as_recipe(source: RecipeSource) -> Recipe:
    """A recipe from a file, a mapping, or another recipe, checked."""
    if isinstance(source, Recipe):
        return source if source.where() else load_recipe(source.model_dump(mode="json", exclude_none=True))
    return load_recipe(source)
