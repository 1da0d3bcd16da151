"""inspect: what the headers of checkpoints say, and how far two are apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from amatax.api.common import Watcher
from amatax.checkpoints.adapter import OpenedAdapter, open_adapter
from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.lora_config import LoraConfig, lora_config
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import CheckpointError, Fault
from amatax.planning.names import Anatomy, anatomy
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Adapted, is_folder

if TYPE_CHECKING:
    from amatax.streaming.differences import Difference


@dataclass
class AdapterInspection:
    """What an adapter's config and headers say.

    Attributes:
        opened: its files and tensors, and its config as written.
        config: its numbers; None if a merge cannot use it.
        faults: why not.
    """

    opened: OpenedAdapter
    config: LoraConfig | None
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Inspection:
    """What the headers of a checkpoint say, and those of the adapter that a recipe puts on it."""

    checkpoint: Checkpoint
    model: Anatomy
    adapter: AdapterInspection | None = None


def inspect(model: str | PathLike[str]) -> Inspection:
    """Open a checkpoint (a folder or a Hub id) by its headers and place its tensors.

    Raises:
        CheckpointError, HubError
        LoneAdapterError: of an adapter, which `inspect_adapter` takes.
    """
    return _inspect(_named(model), remote=True)


def inspect_adapter(adapter: str | PathLike[str]) -> AdapterInspection:
    """Open an adapter (a folder or a Hub id) by its config and its headers.

    Raises:
        CheckpointError, HubError
    """
    opened = open_adapter(_named(adapter))
    return AdapterInspection(opened, *lora_config(opened.config))


def inspect_recipe(recipe: str | PathLike[str]) -> dict[str, Inspection]:
    """The models of a recipe by role, with their adapters put on them.

    Raises:
        RecipeError, CheckpointError, HubError
        AdapterError: if an adapter cannot be used, or does not fit its model.
    """
    found = {}
    for role, model in load_recipe(Path(recipe)).models.by_role().items():
        found[role] = _inspect(model, remote=True)
        if isinstance(model, Adapted):
            found[role].adapter = inspect_adapter(model.adapter)
    return found


def _named(model: str | PathLike[str]) -> str:
    """On the command line a folder needs no ./ in front."""
    name = str(model)
    return f"./{name}" if Path(name).is_dir() and not is_folder(name) else name


def _inspect(model: str | Adapted, *, remote: bool) -> Inspection:
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
