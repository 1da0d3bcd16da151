"""inspect: what the headers of checkpoints say, and how far two are apart."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from amatax.api.common import Watcher
from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import CheckpointError
from amatax.planning.names import Anatomy, anatomy
from amatax.recipes.schema import is_folder

if TYPE_CHECKING:
    from amatax.streaming.differences import Difference


@dataclass
class Inspection:
    """What the headers of a checkpoint say."""

    checkpoint: Checkpoint
    model: Anatomy


def inspect(model: str | PathLike[str]) -> Inspection:
    """Open a checkpoint (a folder or a Hub id) by its headers and place its tensors.

    Raises:
        CheckpointError, HubError
    """
    name = str(model)
    return _inspect(f"./{name}" if Path(name).is_dir() and not is_folder(name) else name, remote=True)


def _inspect(model: str, *, remote: bool) -> Inspection:
    checkpoint = open_checkpoint(model, remote=remote)
    return Inspection(checkpoint, anatomy(checkpoint.tensors, checkpoint.config))


def difference(
    one: Inspection, other: str | PathLike[str], watcher: Watcher | None = None
) -> tuple[Inspection, list[Difference]]:
    """How far a second checkpoint is from the first, tensor by tensor.

    Raises:
        CheckpointError: also if they have no tensor in common.
    """
    from amatax.planning.siblings import align
    from amatax.streaming.differences import differences

    watcher = watcher or Watcher()
    second = inspect(other)
    one, second = (_inspect(i.checkpoint.pinned, remote=False) if i.checkpoint.remote else i for i in (one, second))
    theirs, _ = align(one.checkpoint, second.checkpoint, "other")
    watcher.start(one.checkpoint.nbytes + second.checkpoint.nbytes)
    found = []
    for item in differences(one.checkpoint.tensors, theirs, watcher.advance):
        found.append(item)
        watcher.wait()
    if not found:
        raise CheckpointError(
            f"{one.checkpoint.ref} and {second.checkpoint.ref} have no tensor in common", "are they siblings?"
        )
    return second, found
