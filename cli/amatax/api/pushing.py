"""push: a finished merge to the Hub."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.api.common import RecipeSource, Watcher, as_recipe

if TYPE_CHECKING:
    from amatax.publishing.push import Pushed


def push(folder: str | PathLike[str], repo: str, *, watcher: Watcher | None = None, **options: Any) -> Pushed:
    """Push a finished merge to the Hub, with a card that says what it is made of; a rerun sends only what has not arrived.

    Args:
        folder: what `merge` wrote; it is checked against its record first.
        repo: owner/name on the Hub; made if it does not exist.
        options: private, revision, create_pr, ...: the fields of amatax.publishing.push.PushOptions.

    Raises:
        OutputError: if the folder is unfinished or has changed.
        HubError: what the Hub said, and the next step.
        TypeError: for an option that there is not.
    """
    from amatax.publishing.push import PushOptions, push_folder

    watcher = watcher or Watcher()
    wanted = PushOptions(**options)

    def advance(n: int) -> None:
        watcher.advance(n)
        watcher.wait()

    return push_folder(Path(folder), repo, wanted, start=watcher.start, advance=advance, say=watcher.say)


def check_push(recipe: RecipeSource, repo: str, **options: Any) -> None:
    """Find out before any work whether the merge of a recipe may be pushed there.

    Raises:
        OutputError, HubError: as `push` would, at the end.
    """
    from amatax.publishing.push import PushOptions, check_push

    check_push(as_recipe(recipe).models.references(), repo, PushOptions(**options))
