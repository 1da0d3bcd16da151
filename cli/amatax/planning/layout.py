"""The output's files before any tensor is read: which tensor goes into which shard, at which offset, under which header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from amatax.checkpoints.dtypes import DTYPES, nbytes

RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}


class OutputTensor(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A safetensors file to be written: its header, and where each tensor's bytes begin in the file."""

    file: str
    header: bytes
    offsets: dict[str, int]  # in file order
    nbytes: int  # of the whole file


def split_shards(tensors: Sequence[OutputTensor], max_bytes: int) -> list[list[OutputTensor]]:
    """Fill shards in the given order; a tensor larger than a shard gets one to itself."""
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        n = nbytes(tensor.dtype, tensor.shape)
        if shards[-1] and size + n > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += n
    return shards


def lay_out(tensors: Sequence[OutputTensor], max_bytes: int) -> list[Shard]:
    """Shards under the names that transformers looks for."""
    groups = split_shards(tensors, max_bytes)
    if len(groups) == 1:
        return [_shard("model.safetensors", groups[0])]
    return [_shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def _shard(file: str, tensors: Sequence[OutputTensor]) -> Shard:
    """The bytes that safetensors' own writer gives: widest dtypes first, then by name; the header padded to 8 with spaces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins = {}
    end = 0
    for tensor in sorted(tensors, key=lambda t: (-RANK[t.dtype], t.name)):
        begins[tensor.name] = end
        end += nbytes(tensor.dtype, tensor.shape)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begins[tensor.name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    raw = len(text).to_bytes(8, "little") + text
    return Shard(file, raw, {name: start + begin for name, begin in begins.items()}, start + end)
