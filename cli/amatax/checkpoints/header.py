"""The header of a safetensors file, read strictly: nothing in it is believed before it is checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import TensorEntry, WeightFile
from amatax.checkpoints.dtypes import DTYPES, nbytes
from amatax.errors import CheckpointError

MAX_HEADER = 100_000_000  # the limit of the safetensors library
LARGEST = 1 << 63  # no file has so many bytes
POINTER = b"version "  # how a git-lfs pointer begins
FETCH = "this is a git-lfs pointer: run `git lfs pull`"
INCOMPLETE = "the file is incomplete or damaged: download or save it again"


class _DuplicateKeyError(ValueError):
    pass


def read_header(path: Path) -> tuple[list[TensorEntry], WeightFile]:
    """The tensors of a safetensors file, by offset, and the file's identity.

    Raises:
        CheckpointError: if the file is truncated, is no safetensors file, or its header contradicts itself or the file.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        length = header_length(path, file.read(8), stat.st_size)
        raw = file.read(length)
    digest = hashlib.sha256(raw).hexdigest()
    return parse_header(path, raw, stat.st_size), WeightFile(
        path, stat.st_size, digest, stat.st_mtime_ns, stat.st_ctime_ns
    )


def header_length(path: Path, first: bytes, size: int) -> int:
    """Bytes of the header that follows the first eight, in a file of `size` bytes.

    Raises:
        CheckpointError: if it is no safetensors file, or cut off in its header.
    """
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty", INCOMPLETE)
    length = int.from_bytes(first, "little")
    if first == POINTER or size < 8:
        raise CheckpointError(f"{path}: not a safetensors file", FETCH if first == POINTER else INCOMPLETE)
    if length > MAX_HEADER or length > size - 8:
        raise CheckpointError(
            f"{path}: not a safetensors file, or cut off in its header "
            f"(the header claims {length:,} bytes, the file has {size:,})",
            INCOMPLETE,
        )
    return length


def parse_header(path: Path, raw: bytes, size: int) -> list[TensorEntry]:
    """The tensors that a header names, by offset, in a file of `size` bytes.

    Raises:
        CheckpointError: if it contradicts itself or the file.
    """
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path}: the header names {error} twice", "save the checkpoint again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error})", INCOMPLETE) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object", INCOMPLETE)
    header.pop("__metadata__", None)

    start = 8 + len(raw)
    entries = sorted(
        (_entry(path, name, item, start) for name, item in header.items()),
        key=lambda e: (e.offset, e.nbytes),  # one of no elements before the one that begins where it stands
    )
    end = start
    for entry in entries:
        if entry.offset != end:
            what = "overlap" if entry.offset < end else "leave a hole"
            raise CheckpointError(f"{path}: the tensors {what} before {entry.name!r}", "save the checkpoint again")
        end += entry.nbytes
    if end != size:
        less = end > size
        raise CheckpointError(
            f"{path}: the file is {abs(end - size):,} bytes {'shorter' if less else 'longer'} than its header says"
            f" ({size:,} instead of {end:,})",
            INCOMPLETE,
        )
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(repr(counts.most_common(1)[0][0]))
    return mapping


def _entry(path: Path, name: str, item: Any, start: int) -> TensorEntry:
    """One header item, checked."""
    try:
        name.encode()  # JSON can spell names that UTF-8 cannot
        dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
        if not (isinstance(dtype, str) and isinstance(shape, list)):
            raise TypeError
        shape = tuple(shape)
        if not all(type(n) is int and 0 <= n < LARGEST for n in (*shape, begin, end)):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the header's entry for {name!r} is malformed", INCOMPLETE) from None
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name!r} has the unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    if nbytes(dtype, shape) >= LARGEST:
        raise CheckpointError(f"{path}: the header's entry for {name!r} is malformed", INCOMPLETE)
    if end - begin != nbytes(dtype, shape):
        raise CheckpointError(
            f"{path}: {name!r} is {dtype} {list(shape)}, {nbytes(dtype, shape):,} bytes, "
            f"but the header gives it {end - begin:,}",
            INCOMPLETE,
        )
    return TensorEntry(name, dtype, shape, path, start + begin, end - begin)
