"""One worker's memory: raw bytes as read and as written, and their values as numbers. Allocated once, reused for every chunk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from amatax.errors import InputChangedError


class Bytes:
    """A fixed piece of host memory, seen as bytes by the file calls and as numbers by torch. Pinned if a GPU reads it."""

    def __init__(self, size: int, *, pinned: bool = False) -> None:
        self.tensor = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.view = memoryview((ctypes.c_ubyte * size).from_address(self.tensor.data_ptr())).cast("B")
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def numbers(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The first `count` elements."""
        if dtype not in self._typed:
            self._typed[dtype] = self.tensor.view(dtype)
        return self._typed[dtype][:count]


class Files:
    """Input files, opened when first read and shared by the workers (positioned reads need no lock)."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def read(self, path: Path, into: memoryview, offset: int) -> None:
        """Fill `into` from a file.

        Raises:
            InputChangedError: if the file ends before that.
        """
        fd = self._open.get(path)
        if fd is None:
            fd = os.open(path, os.O_RDONLY)
            if self._open.setdefault(path, fd) != fd:  # another worker was first
                os.close(fd)
                fd = self._open[path]
        done = 0
        while done < len(into):
            n = os.preadv(fd, [into[done:]], offset + done)
            if n == 0:
                raise InputChangedError(f"{path}: the file has become shorter", "is another program writing it?")
            done += n

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
