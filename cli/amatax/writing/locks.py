"""Locks on a file: one process alone, or several together; they die with the processes."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from amatax.errors import OutputError
from amatax.streaming.ranks import shown

SHARE = "write to a folder on a file system that all machines share"
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


def open_when_shown(lock: Path, token: str) -> int:
    """The lock's file, opened, as soon as the first rank's token shows in it."""

    def look() -> int | None:
        try:
            fd = os.open(lock, os.O_RDWR)
        except FileNotFoundError:
            return None
        if os.pread(fd, len(token), 0) == token.encode():
            return fd
        os.close(fd)
        return None

    fd = shown(look)
    if fd is None:
        raise OutputError(f"{lock.parent.parent}: what the first rank writes there does not show here", SHARE)
    return fd


def locked(fd: int, *, alone: bool) -> bool:
    """Take a lock, where the file system has any; False if others hold it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in CANNOT_LOCK
    return True


def stands_at(path: Path, fd: int) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False
