"""Legacy .bin checkpoints: where each tensor's bytes lie, found without unpickling anything but tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from amatax.checkpoints.checkpoint import TensorEntry, WeightFile
from amatax.checkpoints.dtypes import DISK_NAMES, nbytes
from amatax.errors import CheckpointError

CONVERT = "load it where you trust it and save it again with `model.save_pretrained(FOLDER)`, which writes safetensors"


def read_bin(path: Path) -> tuple[list[TensorEntry], WeightFile]:
    """The tensors of a file written by torch.save, by offset, and the file's identity.

    torch.load runs with weights_only, and in FakeTensorMode: it reads the names, shapes and offsets, not the data, which
    torch's zip format stores uncompressed, so that it can be read by range like a safetensors file.

    Raises:
        CheckpointError: if the file holds anything but tensors, is truncated, or has torch's format from before 1.6.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    stat = path.stat()
    if stat.st_size == 0:
        raise CheckpointError(f"{path}: the file is empty", "download or save it again")
    try:
        with FakeTensorMode():
            state = torch.load(path, weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as tensors alone ({reason})", CONVERT) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name", CONVERT)
    entries = []
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor", CONVERT)
        dtype = DISK_NAMES.get(str(tensor.dtype).removeprefix("torch."))
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if dtype is None or offset is None or not tensor.is_contiguous():
            raise CheckpointError(
                f"{path}: {name!r} ({tensor.dtype}, strides {tuple(tensor.stride())}) is not stored plainly", CONVERT
            )
        shape = tuple(tensor.shape)
        begin = offset + tensor.storage_offset() * tensor.element_size()
        entries.append(TensorEntry(name, dtype, shape, path, begin, nbytes(dtype, shape)))
    names = repr([(e.name, e.dtype, e.shape, e.offset) for e in entries])
    file = WeightFile(
        path, stat.st_size, hashlib.sha256(names.encode()).hexdigest(), stat.st_mtime_ns, stat.st_ctime_ns
    )
    return sorted(entries, key=lambda e: (e.offset, e.name)), file
