"""A model as the recipe names it -> Checkpoint."""

from __future__ import annotations

from pathlib import Path

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.folder import open_folder
from amatax.checkpoints.hub import fetch
from amatax.checkpoints.remote import open_remote
from amatax.errors import CheckpointError
from amatax.recipes.schema import expand_home, is_folder


def open_checkpoint(model: str, *, remote: bool = False) -> Checkpoint:
    """Open a folder (absolute, or beginning with ./, ../ or ~) or a Hub id by its headers.

    Args:
        model: as the recipe names it.
        remote: of a Hub id fetch headers and configs alone, if that can be; otherwise everything that a merge reads.

    Raises:
        CheckpointError, HubError
    """
    try:
        if is_folder(model):
            return open_folder(Path(expand_home(model)), model)
        if remote and (found := open_remote(model)) is not None:
            return found
        folder, commit = fetch(model)
        return open_folder(folder, model, commit, root=folder.parent.parent)
    except OSError as error:
        hint = "check the path and its permissions"
        raise CheckpointError(f"{error.filename or model}: {error.strerror or error}", hint) from error
