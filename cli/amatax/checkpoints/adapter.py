"""A PEFT adapter -> its config and its tensors, from headers alone; of one on the Hub, both files are fetched whole: they are small."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Adapter, TensorEntry, WeightFile
from amatax.checkpoints.downloads import Download, bring, fetch_file
from amatax.checkpoints.folder import inside, read_json
from amatax.checkpoints.header import read_header
from amatax.checkpoints.hub_client import files_of
from amatax.checkpoints.hub_errors import hub_error, meant, unreachable
from amatax.checkpoints.pickled import read_bin
from amatax.errors import AmataxError, CheckpointError, HubError
from amatax.recipes.schema import expand_home, is_folder

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the first that is there is read, as in PEFT
SAVE = "save the adapter with PEFT's `save_pretrained`"


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter before it is put on a model.

    Attributes:
        adapter: its files.
        config: what adapter_config.json says, unchecked.
        tensors: by PEFT's names.
    """

    adapter: Adapter
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]


def open_adapter(ref: str) -> OpenedAdapter:
    """Open a folder or a Hub id.

    Raises:
        CheckpointError, HubError: naming what is missing or damaged.
    """
    try:
        if not is_folder(ref):
            folder, commit = _fetch(ref)
            return _open(folder, ref, commit, folder.parent.parent)
        folder = Path(expand_home(ref))
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", "check the path; a Hub id has no ./ in front")
        return _open(folder.resolve(), ref, None, folder.resolve())
    except OSError as error:
        raise CheckpointError(f"{error.filename or ref}: {error.strerror or error}", "check its permissions") from error


def _open(folder: Path, ref: str, commit: str | None, root: Path) -> OpenedAdapter:
    there = sorted(path.name for path in folder.iterdir())
    if CONFIG not in there:
        what = "a whole model: name it without `adapter`" if "config.json" in there else SAVE
        raise CheckpointError(f"{folder}: no {CONFIG}: not an adapter of PEFT", what)
    weights = next((name for name in WEIGHTS if name in there), None)
    if weights is None:
        raise CheckpointError(f"{folder}: no {WEIGHTS[0]}", f"{SAVE}, which writes it beside {CONFIG}")
    config_path, path = inside(folder, CONFIG, root), inside(folder, weights, root)
    entries, file = read_bin(path) if weights.endswith(".bin") else read_header(path)
    if not entries:
        raise CheckpointError(f"{path}: the adapter has no tensors", SAVE)
    said = _whole(config_path)  # before it is read: a change meanwhile shows
    config = read_json(config_path)
    adapter = Adapter(ref, commit, folder, (file, said))
    return OpenedAdapter(adapter, config, {entry.name: entry for entry in entries})


def _whole(path: Path) -> WeightFile:
    """A small file, known by all of it."""
    with path.open("rb") as file:
        stat, data = os.fstat(file.fileno()), file.read()
    return WeightFile(path, stat.st_size, hashlib.sha256(data).hexdigest(), stat.st_mtime_ns, stat.st_ctime_ns)


def _fetch(ref: str) -> tuple[Path, str]:
    """(snapshot in the cache, commit) of an adapter on the Hub, with its config and its weights.

    Raises:
        HubError: naming the repository and the next step.
    """
    repo, _, revision = ref.partition("@")
    try:
        try:
            commit, there = files_of(repo, revision)
        except Exception as error:
            if not unreachable(error):
                raise
            return _cached(repo, revision)
        weights = next((name for name in WEIGHTS if name in there), None)
        if CONFIG not in there or weights is None:
            lacks = CONFIG if CONFIG not in there else WEIGHTS[0]
            hint = "check the id and the revision; a whole model is named without `adapter`"
            raise HubError(f"{repo}: no {lacks}: not an adapter of PEFT", hint)
        folder = fetch_file(repo, CONFIG, commit, there[CONFIG][0]).parent
        files = {name: there[name] for name in (CONFIG, weights)}
        bring(Download(repo, commit, revision, folder, files, named_by=CONFIG))
        return folder, commit
    except AmataxError:
        raise
    except Exception as error:
        raise hub_error(error, repo, revision) from error


def _cached(repo: str, revision: str) -> tuple[Path, str]:
    """The snapshot in the local cache; whether its weights are there shows when it is opened."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG, revision=revision or None)
    if not isinstance(config, str):
        message = f"{repo}: is not in the local cache, and the Hub cannot be reached"
        hint = f"with a connection: `hf download {repo}{f' --revision {revision}' if revision else ''}`"
        raise HubError(message, hint + meant(repo))
    return Path(config).parent, Path(config).parent.name
