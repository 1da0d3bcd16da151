"""A shard of the output: allocated whole, header first, tensors written in place as they come."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from amatax.errors import InputChangedError, OutputError
from amatax.planning.layout import Shard
from amatax.planning.plan import Plan
from amatax.planning.tensors import PlannedTensor

if TYPE_CHECKING:
    from amatax.streaming.chunks import TensorResult
    from amatax.streaming.stream import Streamer

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_shard(
    path: Path, shard: Shard, plan: Plan, streamer: Streamer, wait: Callable[[], None] = lambda: None
) -> dict[str, TensorResult]:
    """Merge one shard's tensors into a file.

    Raises:
        OutputError: if the disk is full or the file cannot be written.
        InputChangedError: if an input file changed while it was read.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _allocate(fd, shard.nbytes)
        _write(fd, memoryview(shard.header), 0)

        def sink(tensor: PlannedTensor, begin: int, data: memoryview) -> None:
            _write(fd, data, shard.offsets[tensor.name] + begin)

        results = streamer.run((plan.tensors[name] for name in shard.offsets), sink, wait)
        check_inputs(plan)
        return results
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in NO_SPACE:
            hint = "free some space and run the same command again: finished shards are kept"
            raise OutputError(f"{path.parent}: the disk is full ({error.strerror})", hint) from None
        if error.errno == errno.EFBIG:
            message = f"{path}: no file of {shard.nbytes:,} bytes may be written here ({error.strerror})"
            raise OutputError(
                message, "set a smaller output.max_shard_size, or raise the limit (`ulimit -f`)"
            ) from None
        raise OutputError(f"{path}: {error.strerror}", "check the disk and run the same command again") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def is_whole(path: Path, shard: Shard, tensors: dict[str, dict[str, str]], block: int = 1 << 20) -> bool:
    """Does a shard hold what the journal says of it? (After a crash of the machine it may not: data reaches the disk late.)"""
    buffer = memoryview(bytearray(max(block, len(shard.header))))
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != shard.nbytes or file.read(len(shard.header)) != shard.header:
                return False
            ends = [*list(shard.offsets.values())[1:], shard.nbytes]
            for (name, begin), end in zip(shard.offsets.items(), ends, strict=True):
                digest = xxhash.xxh3_128()
                while begin < end:
                    n = file.readinto(buffer[: min(block, end - begin)])
                    if not n:
                        return False
                    digest.update(buffer[:n])
                    begin += n
                if digest.hexdigest() != tensors[name]["output"]:
                    return False
    except (OSError, KeyError):
        return False
    return True


def check_inputs(plan: Plan) -> None:
    """Are the input files still those that were planned with?

    Raises:
        InputChangedError: naming the first that is not.
    """
    for checkpoint in plan.checkpoints.values():
        for _, file, commit in checkpoint.inputs:
            if (commit is None or file.mtime_ns) and file.changed():
                hint = "a training run may be writing it; when the file is final, run the same command again"
                raise InputChangedError(f"{file.path}: the file changed during the merge", hint)


def _allocate(fd: int, size: int) -> None:
    """Take the disk space now: a full disk shows before the work, and writing is faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(fd, size)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        n = os.pwrite(fd, data, offset)
        data, offset = data[n:], offset + n
