"""The files we write are, byte for byte, those of safetensors' own writer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from amatax.checkpoints.dtypes import DTYPES, nbytes, torch_dtype
from amatax.planning.layout import OutputTensor, lay_out, split_shards


def test_header_equals_the_library_s(tmp_path: Path) -> None:
    tensors = {}
    for i, (name, (_, torch_name)) in enumerate(DTYPES.items()):
        if torch_name:
            tensors[f"t{i % 3}.{name}"] = torch.zeros((i % 4 + 1, 3), dtype=torch.float32).to(torch_dtype(name))
    tensors["scalar"] = torch.zeros(())
    tensors["empty"] = torch.zeros((0, 4))
    tensors["ümläut"] = torch.zeros(1)
    save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "library.safetensors").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    of_torch = {torch_name: name for name, (_, torch_name) in DTYPES.items()}
    planned = [OutputTensor(n, of_torch[str(t.dtype)[6:]], tuple(t.shape)) for n, t in tensors.items()]
    (shard,) = lay_out(planned, 10**9)
    assert shard.header == raw[:length]
    assert shard.nbytes == len(raw)


def test_every_dtype_of_the_library_is_known() -> None:
    from safetensors import torch as library

    assert set(library._TYPES) <= set(DTYPES)


def test_shards_fill_in_order_and_large_tensors_stand_alone() -> None:
    sizes = {"a": 40, "b": 40, "c": 300, "d": 10, "e": 90, "f": 1}
    tensors = [OutputTensor(name, "U8", (n,)) for name, n in sizes.items()]
    groups = split_shards(tensors, 100)
    assert [[t.name for t in group] for group in groups] == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    shards = lay_out(tensors, 100)
    assert [s.file for s in shards] == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    for shard, group in zip(shards, groups, strict=True):
        header = json.loads(shard.header[8:])
        assert [header[t.name]["data_offsets"][1] - header[t.name]["data_offsets"][0] for t in group] == [
            nbytes(t.dtype, t.shape) for t in group
        ]
