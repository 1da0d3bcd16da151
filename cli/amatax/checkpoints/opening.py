"""A model as the recipe names it -> Checkpoint."""

from __future__ import annotations

from pathlib import Path

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.folder import open_folder
from amatax.checkpoints.hub import fetch
from amatax.recipes.schema import is_folder


def open_checkpoint(model: str) -> Checkpoint:
    """Open a folder (absolute, or beginning with ./, ../ or ~) or a Hub id by its headers.

    Raises:
        CheckpointError, HubError
    """
    if is_folder(model):
        return open_folder(Path(model).expanduser(), model)
    folder, commit = fetch(model)
    return open_folder(folder, model, commit, root=folder.parent.parent)
