"""The output folder before the merge: what stands there, whether it may be written, whether it fits the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path

from amatax.errors import Fault

RECORD = "amatax_record.json"  # in a finished folder: what was merged, with checksums
RECIPE = "amatax_recipe.yaml"  # in a finished folder: the recipe that makes it again
WORK = ".amatax"  # in an unfinished folder: journal and lock
JOURNAL = "journal.jsonl"  # in WORK; it is written before anything else is
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
    DAMAGED = "finished, but damaged since"
    OTHER = "holds something else"


def unfinished(path: Path) -> Path:
    """The folder that a merge into `path` works in until it is whole."""
    return path.with_name(path.name + ".unfinished")


def state(path: Path, identity: str, shards: Mapping[str, int]) -> State:
    """What stands at `path`, for a merge of that identity that writes those files of so many bytes."""
    if not path.exists():
        return State.ABSENT
    if path.is_dir() and not any(path.iterdir()):
        return State.EMPTY
    try:
        recorded = json.loads((path / RECORD).read_text(encoding="utf-8")).get("identity")
    except (OSError, ValueError, AttributeError):
        recorded = None
    if recorded != identity:
        return State.OTHER
    return State.DAMAGED if _damaged(path, shards) else State.SAME


def strangers(partial: Path) -> list[str]:
    """What lies where amatax would work without a journal that vouches for it: somebody else's files."""
    if not partial.is_dir() or (partial / WORK / JOURNAL).exists():
        return []
    return sorted(path.name for path in partial.iterdir() if path.name != WORK)


def destination_faults(
    path: Path, inputs: Iterable[Path], shards: Mapping[str, int], found: State, overwrite: bool
) -> Iterator[Fault]:
    """Why the output cannot be written there."""
    real = path.resolve()
    partial = unfinished(real)
    for folder in inputs:
        if partial == folder or partial in folder.parents or folder in partial.parents:
            yield Fault(
                f"{partial}, where amatax works on {path}, overlaps the input {folder}", hint="write somewhere else"
            )
            return
        if real == folder or real in folder.parents or folder in real.parents:
            yield Fault(f"the output {path} overlaps the input {folder}", hint="write somewhere else")
            return
    if path.exists() and not path.is_dir():
        yield Fault(f"{path} is a file", hint="name a folder to write, or remove the file")
        return
    if real == Path.cwd():
        yield Fault(f"{path} is the working directory, which the model would replace", hint="name a folder inside it")
        return
    if os.path.ismount(path):
        yield Fault(
            f"{path} is a mount point, which cannot be renamed", hint=f"name a folder inside it: {path / 'model'}"
        )
        return
    if partial.exists() and not partial.is_dir():
        yield Fault(f"{partial}, where amatax works, is a file", hint="move it away, or choose another output folder")
        return
    if foreign := strangers(partial):
        message = f"{partial}, where amatax works, holds files that no merge left ({', '.join(foreign[:3])})"
        yield Fault(message, hint="move them away, or choose another output folder")
        return
    if found is State.DAMAGED and not overwrite:
        message = f"{path} was finished and is damaged: {_damaged(path, shards)[0]} is gone, or not as long as it was"
        yield Fault(message, hint="make it again with --overwrite")
    if found in (State.OTHER, State.DAMAGED) or (found is State.SAME and overwrite):
        held = sorted(path.iterdir())
        model = any(item.name == RECORD or item.suffix in (".safetensors", ".bin") for item in held)
        ours = _recorded(path)
        strange = [i.name for i in held if not (model and (_belongs_to_model(i) or i.name in ours))]
        if strange:
            yield Fault(
                f"{path} holds files that are no model's ({', '.join(strange[:3])})",
                hint="choose another folder; --overwrite replaces model folders only",
            )
        elif not overwrite and found is State.OTHER:
            hint = "choose another folder, or replace this one with --overwrite"
            yield Fault(f"{path} holds another model, or another merge", hint=hint)
    if found is State.SAME and not overwrite:
        return
    parent = real.parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Fault(f"{parent} is not writable", hint="choose another output folder, or change its permissions")
        return
    kept = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.is_dir() else 0
    free = shutil.disk_usage(parent).free
    needed = sum(shards.values())
    if needed + MARGIN > free + kept:
        yield Fault(
            f"the output needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free",
            hint="free some space, or write to another disk",
        )


def _recorded(path: Path) -> set[str]:
    """What a finished folder's record says was written there: files, and the sub-folders that they are in."""
    try:
        files = json.loads((path / RECORD).read_text(encoding="utf-8"))["files"]
        return {name.partition("/")[0] for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _damaged(path: Path, shards: Mapping[str, int]) -> list[str]:
    """The shards that a finished folder has lost, in whole or in part."""
    return [f for f, size in shards.items() if not (path / f).is_file() or (path / f).stat().st_size != size]


def _belongs_to_model(item: Path) -> bool:
    if item.is_dir():
        return item.name in (WORK, "additional_chat_templates", ".cache")
    return item.suffix in MODEL_SUFFIXES or item.name in (".gitattributes", "LICENSE", "NOTICE", ".gitignore")
