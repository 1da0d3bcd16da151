"""The output folder before the merge: what stands there, whether it may be written, whether it fits the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from amatax.errors import Fault

RECORD = "amatax_record.json"  # in a finished folder: what was merged, with checksums
RECIPE = "amatax_recipe.yaml"  # in a finished folder: the recipe that makes it again
WORK = ".amatax"  # in an unfinished folder: journal and lock
MODEL_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".py",
    ".md",
    ".yaml",
    ".tiktoken",
    ".gguf",
}
MARGIN = 16 << 20  # bytes for the small files


class State(Enum):
    """What stands at the output path."""

    ABSENT = "absent"
    EMPTY = "empty"
    SAME = "finished: the same merge"
    OTHER = "holds something else"


def unfinished(path: Path) -> Path:
    """The folder that a merge into `path` works in until it is whole."""
    return path.with_name(path.name + ".unfinished")


def state(path: Path, identity: str) -> State:
    """What stands at `path`, for a merge of that identity."""
    if not path.exists():
        return State.ABSENT
    if path.is_dir() and not any(path.iterdir()):
        return State.EMPTY
    try:
        recorded = json.loads((path / RECORD).read_text(encoding="utf-8")).get("identity")
    except (OSError, ValueError, AttributeError):
        recorded = None
    return State.SAME if recorded == identity else State.OTHER


def destination_faults(
    path: Path, inputs: Iterable[Path], needed: int, found: State, overwrite: bool
) -> Iterator[Fault]:
    """Why the output cannot be written there."""
    real = path.resolve()
    for folder in inputs:
        if real == folder or real in folder.parents or folder in real.parents:
            yield Fault(f"the output {path} overlaps the input {folder}", hint="write somewhere else")
            return
    if path.exists() and not path.is_dir():
        yield Fault(f"{path} is a file", hint="name a folder to write, or remove the file")
        return
    if os.path.ismount(path):
        yield Fault(
            f"{path} is a mount point, which cannot be renamed", hint=f"name a folder inside it: {path / 'model'}"
        )
        return
    if found is State.OTHER:
        held = sorted(path.iterdir())
        model = any(item.name == "config.json" or item.suffix == ".safetensors" for item in held)
        strange = [item.name for item in held if not (model and _belongs_to_model(item))]
        if strange:
            yield Fault(
                f"{path} holds files that are no model's ({', '.join(strange[:3])})",
                hint="choose another folder; --overwrite replaces model folders only",
            )
        elif not overwrite:
            hint = "choose another folder, or replace this one with --overwrite"
            yield Fault(f"{path} holds another model, or another merge", hint=hint)
    if found is State.SAME:
        return
    parent = real.parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Fault(f"{parent} is not writable", hint="choose another output folder, or change its permissions")
        return
    partial = unfinished(real)
    kept = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.is_dir() else 0
    free = shutil.disk_usage(parent).free
    if needed + MARGIN > free + kept:
        yield Fault(
            f"the output needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free",
            hint="free some space, or write to another disk",
        )


def _belongs_to_model(item: Path) -> bool:
    if item.is_dir():
        return item.name in (WORK, "additional_chat_templates", ".cache")
    return item.suffix in MODEL_SUFFIXES or item.name in (".gitattributes", "LICENSE", "NOTICE", ".gitignore")
