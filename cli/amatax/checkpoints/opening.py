"""A model as the recipe names it, with an adapter or without -> Checkpoint."""

from __future__ import annotations

from pathlib import Path

from amatax.checkpoints.adapter import open_adapter
from amatax.checkpoints.adapting import put_on
from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.downloads import bring
from amatax.checkpoints.folder import open_folder
from amatax.checkpoints.hub import fetch
from amatax.checkpoints.remote import open_remote, wanted
from amatax.errors import AdapterError, AmataxError, CheckpointError, Fault, HubError
from amatax.recipes.schema import Adapted, expand_home, is_folder


def open_checkpoint(model: str | Adapted, *, remote: bool = False) -> Checkpoint:
    """Open a folder (absolute, or beginning with ./, ../ or ~) or a Hub id by its headers; an adapter on it is put there.

    Args:
        model: as the recipe names it.
        remote: of a Hub id fetch headers and configs alone, if that can be; otherwise everything that a merge reads. Adapters are
            always fetched.

    Raises:
        CheckpointError, HubError: of the model.
        AdapterError: with all that is wrong with the adapter.
    """
    if isinstance(model, Adapted):
        try:
            opened = open_adapter(model.adapter)
        except AmataxError as error:
            raise AdapterError([Fault(error.message, hint=error.hint)]) from error
        return put_on(open_checkpoint(model.model, remote=remote), opened)
    try:
        if is_folder(model):
            return open_folder(Path(expand_home(model)), model)
        found = open_remote(model)
        if found is not None and remote:
            return found
        if found is not None:
            bring(wanted(found))
            return open_folder(found.folder, model, found.commit, root=found.root)
        folder, commit, whole = fetch(model)
        try:
            found = open_folder(folder, model, commit, root=folder.parent.parent)
            if whole and remote:
                found.notes.append(f"{model}: .bin weights have no header to read from afar: all of it was downloaded")
            return found
        except CheckpointError as error:
            if whole:
                raise
            repo, _, revision = model.partition("@")
            command = f"hf download {repo}{f' --revision {revision}' if revision else ''}"
            raise HubError(f"{repo}: not all of it is in the local cache ({error.message})", f"`{command}`") from error
    except OSError as error:
        hint = "check the path and its permissions"
        raise CheckpointError(f"{error.filename or model}: {error.strerror or error}", hint) from error
