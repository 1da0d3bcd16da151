"""What a tensor is cut into on its way: parts that are merged in one way, chunks in memory, and where each model has its bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amatax.checkpoints.dtypes import torch_dtype
from amatax.methods import BoundMethod
from amatax.planning.plan import PlannedTensor
from amatax.streaming.buffers import Bytes

WIDE = {"F32", "F64"}


class Part(NamedTuple):
    """Elements of a tensor that are merged in one way."""

    tensor: PlannedTensor
    method: BoundMethod
    elements: range

    @property
    def is_copy(self) -> bool:
        """Whether the bytes of one model are written as they are."""
        copied = self.tensor.copy_of
        return copied is not None and self.tensor.sources[copied].dtype == self.tensor.dtype


class Slot:
    """The host memory of one chunk: each model's bytes, and the output's."""

    def __init__(self, roles: tuple[str, ...], elements: int, *, pinned: bool) -> None:
        self.raw = {role: Bytes(elements * 8, pinned=pinned) for role in roles}
        self.out = Bytes(elements * 8, pinned=pinned)
        if pinned:
            self.done = torch.cuda.Event(blocking=True)


class Merging(NamedTuple):
    """A chunk on its way: what was read, where the result arrives, and sums that are finite if all values are."""

    slot: Slot
    first: int
    raw: dict[str, torch.Tensor]
    out: torch.Tensor
    screens: list[torch.Tensor]
    stats: Any


class Source(NamedTuple):
    """One model's tensor on disk, in torch's words."""

    role: str
    path: Path
    offset: int
    width: int  # bytes of an element
    dtype: torch.dtype


def sources_of(tensor: PlannedTensor) -> list[Source]:
    """Where every model that is read has the tensor."""
    return [
        Source(role, e.path, e.offset, e.nbytes // max(1, math.prod(e.shape)), torch_dtype(e.dtype))
        for role, e in tensor.sources.items()
    ]


def compute_dtype(tensor: PlannedTensor) -> torch.dtype:
    """That a tensor is merged in."""
    return torch.float64 if WIDE & {entry.dtype for entry in tensor.sources.values()} else torch.float32
