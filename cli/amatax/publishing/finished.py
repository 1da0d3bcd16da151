"""Is a folder the finished merge that its record speaks of, byte for byte?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from amatax.checkpoints.folder import inside
from amatax.checkpoints.header import read_header
from amatax.errors import AmataxError, OutputError
from amatax.planning.destination import RECORD, WORK
from amatax.writing.record import read_record

PIECE = 1 << 20  # bytes read at once
AGAIN = "merge it again with --overwrite"
OTHERS = (f"{WORK}/", ".cache/huggingface/")  # ours, and what `hf download --local-dir` brings


def finished_files(folder: Path, advance: Callable[[int], None] = lambda n: None) -> tuple[list[str], dict[str, Any]]:
    """The files of a finished merge, checked against its record: the small ones by sha256, the tensors by their own checksums.

    Args:
        folder: what `amatax merge` wrote.
        advance: told the bytes that were read.

    Returns:
        The files to publish, by name, and the record.

    Raises:
        OutputError: if the folder is unfinished, or holds anything else than was recorded.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", "name the folder that `amatax merge` wrote")
    if folder.name.endswith(".unfinished") or not (folder / RECORD).is_file():
        raise OutputError(f"{folder}: not a finished merge (no {RECORD})", "run `amatax merge` to its end first")
    record = read_record(folder)
    shards, files = record.get("shards"), record["files"]
    if not isinstance(shards, dict):
        raise OutputError(f"{folder / RECORD}: names no shards", AGAIN)
    expected = sorted({*shards, *files, RECORD})
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    there = [name for name in there if not name.startswith(OTHERS) and name != ".gitattributes"]
    if missing := sorted(set(expected) - set(there)):
        raise OutputError(f"{folder}: {missing[0]} is gone", AGAIN)
    if added := sorted(set(there) - set(expected)):
        raise OutputError(
            f"{folder}: {added[0]} was not there when the merge ended ({len(added)} such)", "move it out of the folder"
        )
    root = folder.resolve()
    for name, digest in files.items():
        if hashlib.sha256(inside(folder, name, root).read_bytes()).hexdigest() != digest:
            raise OutputError(f"{folder / name}: changed since the merge ended", f"bring it back, or {AGAIN}")
    seen: set[str] = set()
    for name, size in shards.items():
        path = inside(folder, name, root)
        if path.stat().st_size != size:
            raise OutputError(f"{path}: not {size:,} bytes long", AGAIN)
        for tensor, digest in _checksums(path, advance):
            seen.add(tensor)
            if record["tensors"].get(tensor, {}).get("output") != digest:
                raise OutputError(f"{path}: {tensor!r} is not what was written", AGAIN)
    if lost := sorted(set(record["tensors"]) - seen):
        raise OutputError(f"{folder}: {lost[0]!r} is in no shard", AGAIN)
    return expected, record


def _checksums(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, str]]:
    """(tensor, XXH3-128 of its bytes)."""
    try:
        entries, _ = read_header(path)
    except AmataxError as error:
        raise OutputError(error.message, AGAIN) from error
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        for entry in entries:
            digest, left = xxhash.xxh3_128(), entry.nbytes
            file.seek(entry.offset)
            while left:
                n = file.readinto(buffer[: min(PIECE, left)]) or 0
                if not n:
                    raise OutputError(f"{path}: became shorter while it was read", AGAIN)
                digest.update(buffer[:n])
                left -= n
                advance(n)
            yield entry.name, digest.hexdigest()
