"""A Hub repository -> Checkpoint, from its headers and configs alone: a few ranges of its files, and no weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax import __version__
from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry, WeightFile
from amatax.checkpoints.downloads import Download, fetch_file
from amatax.checkpoints.folder import IN_A_RECIPE, gather, read_config, read_json, weight_files
from amatax.checkpoints.header import header_length, parse_header
from amatax.checkpoints.hub_client import hub_api, patiently, range_options
from amatax.checkpoints.hub_errors import hub_error, unreachable
from amatax.checkpoints.side_names import is_side_file
from amatax.errors import AmataxError, HubError, LoneAdapterError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SPARE = 700_000  # bytes that all first requests together may ask for
FIRST = 1 << 16  # bytes of one first request, at most; most headers fit
AT_ONCE = 8  # requests
ATTEMPTS = 3  # at a range whose connection breaks


def open_remote(model: str) -> Checkpoint | None:
    """Open `owner/name` or `owner/name@revision` by ranges.

    Returns:
        None if that cannot be: the Hub does not answer, or the weights are .bin files, which have no header.

    Raises:
        HubError: naming the repository and the next step.
        CheckpointError: as for a folder.
    """
    repo, _, revision = model.partition("@")
    try:
        api = hub_api()
        info = patiently(lambda: api.model_info(repo, revision=revision or None, files_metadata=True))
    except Exception as error:
        if unreachable(error):
            return None
        raise hub_error(error, repo, revision) from error
    try:
        return _open(model, repo, info)
    except AmataxError:
        raise
    except Exception as error:
        raise hub_error(error, repo, revision) from error


def _open(model: str, repo: str, info: ModelInfo) -> Checkpoint | None:
    from concurrent.futures import ThreadPoolExecutor

    commit = str(info.sha)
    listing = {s.rfilename: str(s.lfs.sha256 if s.lfs else s.blob_id) for s in info.siblings or []}
    if strange := [name for name in listing if not _is_plain(name)]:
        raise HubError(f"{repo}: a file is called {strange[0]!r}", "no file of a model has such a name: ask its owner")
    there = {name for name in listing if "/" not in name}

    if "config.json" not in there:
        raise _no_config(repo, there)
    folder = fetch_file(repo, "config.json", commit, listing["config.json"]).parent
    names, weight_map, notes = weight_files(
        repo, there, lambda index: read_json(fetch_file(repo, index, commit, listing[index]))
    )
    if any(name.endswith(".bin") for name in names):
        return None
    if lost := [name for name in names if name not in listing]:
        raise HubError(f"{repo}: the index names {lost[0]!r}, which is not there", "is the upload complete?")
    first = min(FIRST, max(8, SPARE // max(1, len(names))))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        headers = dict(
            zip(names, pool.map(lambda name: _header(repo, name, commit, folder, first), names), strict=True)
        )
    tensors, files = gather(repo, headers, weight_map, notes)
    root = folder.parent.parent
    return Checkpoint(model, commit, folder, root, read_config(folder, root), tensors, files, notes, listing)


def fetch_side_files(files: Iterable[Path], checkpoints: Iterable[Checkpoint]) -> None:
    """Bring the small files of repositories opened by their headers to where they were planned.

    Raises:
        HubError: if one cannot be fetched.
    """
    wanted = set(files)
    for checkpoint in checkpoints:
        for name in checkpoint.names if checkpoint.remote is not None else ():
            if checkpoint.folder / name in wanted:
                repo = checkpoint.ref.partition("@")[0]
                fetch_file(repo, name, str(checkpoint.commit), (checkpoint.remote or {})[name])


def _header(repo: str, name: str, commit: str, folder: Path, first: int) -> tuple[list[TensorEntry], WeightFile]:
    """One safetensors file's, as it would stand in the cache."""
    begin, size = read_range(repo, name, commit, 0, first)
    path = folder / name
    length = header_length(Path(f"{repo}/{name}"), begin[:8], size)
    raw = begin[8 : 8 + length]
    if len(raw) < length:
        raw += read_range(repo, name, commit, 8 + len(raw), 8 + length)[0]
    entries = [entry._replace(path=path) for entry in parse_header(Path(f"{repo}/{name}"), raw, size)]
    return entries, WeightFile(path, size, hashlib.sha256(raw).hexdigest(), 0, 0)


def read_range(repo: str, name: str, commit: str, begin: int, end: int) -> tuple[bytes, int]:
    """(bytes begin to end of a file, or to its end; the size of the file), retried as huggingface_hub retries.

    Raises:
        HubError: if the server sends something else than that range.
    """
    for _ in range(ATTEMPTS):
        data, size = _ask_for_range(repo, name, commit, begin, end)
        if len(data) == min(end, size) - begin:
            return data, size
    sent = f"the server sent {len(data):,} bytes of {name} instead of {min(end, size) - begin:,}, {ATTEMPTS} times"
    raise HubError(f"{repo}: {sent}", "check the connection, and run the same command again")


def _ask_for_range(repo: str, name: str, commit: str, begin: int, end: int) -> tuple[bytes, int]:
    """One request: what came of the range, and the size of the file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    url = hf_hub_url(repo, name, revision=commit)
    headers = build_hf_headers(library_name="amatax", library_version=__version__)
    headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff("GET", url, headers=headers, **range_options()) as response:
        hf_raise_for_status(response)
        told, _, size = response.headers.get("Content-Range", "").partition("/")
        ranged = response.status_code == 206 and told.startswith(f"bytes {begin}-") and size.isdigit()
        data = _body(response, end - begin) if ranged else b""
    if not ranged:
        hint = "is HF_ENDPOINT a mirror that has no ranges? `hf download` the model, and name the folder"
        raise HubError(f"{repo}: the server sent no part of {name}, but something else", hint)
    return data, int(size)


def _body(response: Any, most: int) -> bytes:
    """As much of a body as comes: where it breaks off, what was there (http_stream_backoff takes no exception from inside)."""
    data = b""
    try:
        for piece in response.iter_bytes():
            data += piece
            if len(data) > most:
                break
    except Exception as error:
        if not unreachable(error):
            raise
    return data


def wanted(checkpoint: Checkpoint) -> Download:
    """Everything that a merge reads of a repository opened by its headers, at its commit."""
    repo, _, revision = checkpoint.ref.partition("@")
    listing, sizes = checkpoint.remote or {}, {checkpoint.name_of(file.path): file.size for file in checkpoint.files}
    names = [*sizes, *(name for name in checkpoint.names if is_side_file(name) and name not in sizes)]
    files = {name: (listing[name], sizes.get(name, 0)) for name in names}
    return Download(repo, str(checkpoint.commit), revision, checkpoint.folder, files)


def to_come(checkpoints: Iterable[Checkpoint]) -> int:
    """Bytes of Hub models that are not in the cache yet."""
    return sum(wanted(checkpoint).to_come() for checkpoint in checkpoints if checkpoint.remote is not None)


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and name.isprintable() and all(part not in ("", ".", "..") for part in parts)


def _no_config(repo: str, there: set[str]) -> AmataxError:
    if "adapter_config.json" in there:
        return LoneAdapterError(f"{repo}: a LoRA adapter, not a whole model", IN_A_RECIPE)
    shown = ", ".join(sorted(there)[:5])
    return HubError(
        f"{repo}: not a model (no config.json; it holds {shown or 'nothing'})", "check the id and the revision"
    )
