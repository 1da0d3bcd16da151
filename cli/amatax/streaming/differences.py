"""How far two checkpoints are apart, tensor by tensor, in one pass of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import MERGEABLE, torch_dtype
from amatax.streaming.buffers import Bytes, Files

ELEMENTS = 1 << 18


class Difference(NamedTuple):
    """Squared norms of one tensor, in float64."""

    name: str
    change: float  # |other - one|^2
    size: float  # |one|^2


def relative(differences: list[Difference]) -> float:
    """|other - one| / |one| over several tensors, in the Frobenius norm; inf where only `one` is zero."""
    change, size = math.fsum(d.change for d in differences), math.fsum(d.size for d in differences)
    return math.sqrt(change / size) if size else math.inf if change else 0.0


def differences(
    one: dict[str, TensorEntry], other: dict[str, TensorEntry], advance: Callable[[int], None] = lambda n: None
) -> Iterator[Difference]:
    """The difference of every floating-point tensor that both have in the same shape."""
    buffers = [Bytes(ELEMENTS * 8) for _ in range(2)]
    with Files() as files:
        for name, a in one.items():
            b = other.get(name)
            if b is None or a.shape != b.shape or a.dtype not in MERGEABLE or b.dtype not in MERGEABLE:
                continue
            change = size = 0.0
            count = math.prod(a.shape)
            for first in range(0, count, ELEMENTS):
                n = min(ELEMENTS, count - first)
                values = []
                for entry, buffer in zip((a, b), buffers, strict=True):
                    width = entry.nbytes // count
                    files.read(entry.path, buffer.view[: n * width], entry.offset + first * width)
                    values.append(buffer.numbers(torch_dtype(entry.dtype), n).to(torch.float32))
                    advance(n * width)
                delta = (values[1] - values[0]).double()
                change += float(delta @ delta)
                wide = values[0].double()
                size += float(wide @ wide)
            yield Difference(name, change, size)
