"""A model folder -> Checkpoint: which files hold the weights, what the index says, what the config says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry, WeightFile
from amatax.checkpoints.header import FETCH, POINTER, read_header
from amatax.checkpoints.pickled import read_bin
from amatax.errors import CheckpointError, LoneAdapterError

SHARD = re.compile(r"(?P<stem>.+)-(?P<i>\d{5})-of-(?P<n>\d{5})\.(safetensors|bin)")
IN_A_RECIPE = "name it beside its model: `{model: THE_MODEL_IT_WAS_TRAINED_ON, adapter: THIS}`"
SINGLES = ("model.safetensors", "pytorch_model.bin")


def open_folder(folder: Path, ref: str, commit: str | None = None, root: Path | None = None) -> Checkpoint:
    """Open a model folder by its headers.

    Args:
        folder: holds config.json and the weights, in one file or in shards, with an index or without.
        ref: how the recipe names it.
        commit: the Hub's commit, if it came from there.
        root: what no file may lie outside of; the folder itself by default.

    Raises:
        CheckpointError: naming the first file that is missing, damaged, or outside the folder.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder", "check the path; a Hub id has no ./ in front")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder", "name the model folder, not a file in it")
    folder = folder.resolve()
    root = root.resolve() if root else folder
    config = read_config(folder, root)
    there = {path.name for path in folder.iterdir()}
    names, weight_map, notes = weight_files(str(folder), there, lambda index: read_json(inside(folder, index, root)))

    def read(name: str) -> tuple[list[TensorEntry], WeightFile]:
        path = inside(folder, name, root)
        return read_bin(path) if name.endswith(".bin") else read_header(path)

    tensors, files = gather(str(folder), {name: read(name) for name in names}, weight_map, notes)
    return Checkpoint(ref, commit, folder, root, config, tensors, files, notes)


def gather(
    where: str,
    headers: Mapping[str, tuple[list[TensorEntry], WeightFile]],
    weight_map: Mapping[str, str],
    notes: list[str],
) -> tuple[dict[str, TensorEntry], tuple[WeightFile, ...]]:
    """The tensors of all weight files, in their order, as the index has them.

    Raises:
        CheckpointError: if files and index contradict each other.
    """
    tensors: dict[str, TensorEntry] = {}
    for name, (entries, _) in headers.items():
        for entry in entries:
            if weight_map.get(entry.name, name) != name:
                continue  # the index takes it from another shard
            if entry.name in tensors:
                other = tensors[entry.name].path.name
                raise CheckpointError(f"{where}: {entry.name!r} is in both {other} and {name}", "remove the stale file")
            tensors[entry.name] = entry
    if missing := [tensor for tensor in weight_map if tensor not in tensors]:
        raise CheckpointError(
            f"{where}: the index names {len(missing)} tensors that are not in the files it gives for them, "
            f"first {missing[0]!r} in {weight_map[missing[0]]}",
            "the index and the shards are of different saves: download or save the checkpoint again",
        )
    if weight_map and (extra := len(tensors) - len(weight_map)) > 0:
        notes.append(f"{extra} tensors are in the shards and not in the index; they are kept")
    if not tensors:
        raise CheckpointError(f"{where}: the weights have no tensors", "download or save the checkpoint again")
    return tensors, tuple(file for _, file in headers.values())


def inside(folder: Path, name: str, root: Path) -> Path:
    """folder/name, which must exist and lie inside root, links followed.

    Raises:
        CheckpointError: if it is missing or leads outside.
    """
    path = folder / name
    try:
        real, there = path.resolve(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL, a name too long
        raise CheckpointError(f"{folder}: {name!r} cannot be a file ({error})", "save the checkpoint again") from None
    if not real.is_relative_to(root) or Path(name).is_absolute():
        raise CheckpointError(
            f"{folder}: {name!r} leads outside the folder, to {real}",
            "amatax follows no path out of a checkpoint: put the file itself in the folder",
        )
    if not there:
        raise CheckpointError(f"{path}: no such file", "the checkpoint is incomplete: download or save it again")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if the file is empty, no JSON, or no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise CheckpointError(f"{path}: the file is empty", "download or save it again")
        value = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check the path and its permissions") from None
    except (ValueError, RecursionError) as error:
        pointer = path.read_bytes()[: len(POINTER)] == POINTER
        hint = FETCH if pointer else "download or save it again"
        raise CheckpointError(f"{path}: not valid JSON ({error})", hint) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", "download or save it again")
    return value


def read_config(folder: Path, root: Path) -> dict[str, Any]:
    """The folder's config.json; a folder without one is no model folder."""
    if (folder / "config.json").exists() or (folder / "config.json").is_symlink():
        return read_json(inside(folder, "config.json", root))
    if (folder / "adapter_config.json").exists():
        raise LoneAdapterError(f"{folder}: a LoRA adapter, not a whole model", IN_A_RECIPE)
    files = sorted(path.name for path in folder.iterdir())
    nested = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    if nested:
        raise CheckpointError(f"{folder}: no config.json here", f"did you mean {folder / nested[-1]}?")
    listed = f"it holds {', '.join(files[:5])}{' ...' if len(files) > 5 else ''}" if files else "it is empty"
    raise CheckpointError(
        f"{folder}: not a model folder (no config.json; {listed})", "name a folder saved by transformers"
    )


def weight_files(
    where: str, there: Collection[str], read_index: Callable[[str], dict[str, Any]]
) -> tuple[list[str], dict[str, str], list[str]]:
    """(weight files in reading order, the index's weight_map or {}, notes). Safetensors win over .bin, as in transformers.

    Args:
        where: the folder or repository, for messages.
        there: the names in it.
        read_index: reads one of them, a JSON object.

    Raises:
        CheckpointError: if there are none, or not all.
    """
    found = sorted(name for name in there if name.endswith((".safetensors", ".bin")))
    notes: list[str] = []
    for single, index in zip(SINGLES, (f"{s}.index.json" for s in SINGLES), strict=True):
        if single in there:
            if index in there:
                notes.append(f"both {single} and {index} are there: {single} is read, as transformers does")
            return [single], {}, notes
        if index in there:
            weight_map = _weight_map(f"{where}/{index}", read_index(index))
            return sorted(set(weight_map.values())), weight_map, notes
        shards = [name for name in found if SHARD.fullmatch(name) and name.startswith(single.partition(".")[0])]
        if shards:
            _complete(where, shards)
            return shards, {}, notes
    alone = [
        name for name in found if name.endswith(".safetensors") and not name.startswith(("adapter_", "consolidated"))
    ]
    if len(alone) == 1:
        return alone, {}, notes
    if alone:
        raise CheckpointError(
            f"{where}: {len(alone)} safetensors files and no index ({', '.join(alone[:3])} ...)",
            "name them model-00001-of-0000N.safetensors, or save the checkpoint again with an index",
        )
    other = sorted(name for name in there if name.endswith((".gguf", ".pt", ".pth", ".h5", ".msgpack")))
    seen = f" ({other[0]} is not one amatax reads)" if other else ""
    raise CheckpointError(f"{where}: no safetensors or .bin weights{seen}", "save the model with `save_pretrained`")


def _weight_map(index: str, content: dict[str, Any]) -> dict[str, str]:
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: no `weight_map` of tensor names to files", "download or save it again")
    if not weight_map:
        raise CheckpointError(f"{index}: `weight_map` is empty", "download or save it again")
    return weight_map


def _complete(where: str, shards: list[str]) -> None:
    """Shards without an index tell by their names how many they must be."""
    parts = [SHARD.fullmatch(name) for name in shards]
    of = {int(part["n"]) for part in parts if part}
    have = {int(part["i"]) for part in parts if part}
    if len(of) != 1:
        raise CheckpointError(
            f"{where}: shards of different saves ({', '.join(shards[:3])} ...)", "remove the stale ones"
        )
    if missing := sorted(set(range(1, max(of) + 1)) - have):
        raise CheckpointError(
            f"{where}: {len(missing)} of {max(of)} shards are missing, first number {missing[0]}",
            "the checkpoint is incomplete: download or save it again",
        )
