"""One worker's memory: raw bytes as read and as written, and their values as numbers. Allocated once, reused for every chunk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from amatax.errors import InputChangedError

LOST = "is another program writing or moving it? When the file is whole, run the same command again"


class Numbers:
    """A fixed piece of memory on a device, seen as numbers of any dtype."""

    def __init__(self, size: int, device: torch.device | str = "cpu", *, pinned: bool = False) -> None:
        self.tensor = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
        self._last = (torch.uint8, size)
        self._numbers = self.tensor

    def numbers(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The first `count` elements. (The last view is kept: nearly every chunk is like the one before.)"""
        if self._last != (dtype, count):
            self._last = (dtype, count)
            self._numbers = self.tensor.view(dtype)[:count]
        return self._numbers


class Bytes(Numbers):
    """The same in host memory, seen as bytes too, by the file calls. Pinned if a GPU reads it."""

    def __init__(self, size: int, *, pinned: bool = False) -> None:
        super().__init__(size, pinned=pinned)
        self.view = memoryview((ctypes.c_ubyte * size).from_address(self.tensor.data_ptr())).cast("B")


class Files:
    """Input files, opened when first read and shared by the workers (positioned reads need no lock).

    Attributes:
        parts: a few bytes here and a few there are cheaper to read than all between them.
    """

    parts = True

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def named(self, path: Path) -> str:
        """A file for people."""
        return str(path)

    def read(self, path: Path, into: memoryview, offset: int) -> None:
        """Fill `into` from a file.

        Raises:
            InputChangedError: if the file ends before that, or can no longer be read.
        """
        fd = self._open.get(path)
        if fd is None:
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise InputChangedError(f"{path}: {error.strerror}", LOST) from None
            if self._open.setdefault(path, fd) != fd:  # another worker was first
                os.close(fd)
                fd = self._open[path]
        while into:
            try:
                n = os.preadv(fd, [into], offset)
            except OSError as error:
                raise InputChangedError(f"{path}: {error.strerror}", LOST) from None
            if n == 0:
                raise InputChangedError(f"{path}: the file has become shorter", LOST)
            into, offset = into[n:], offset + n

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
