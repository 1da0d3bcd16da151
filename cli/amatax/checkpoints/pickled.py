"""Legacy .bin checkpoints: where each tensor's bytes lie, found without unpickling anything but tensors."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

from amatax.checkpoints.checkpoint import TensorEntry, WeightFile
from amatax.checkpoints.dtypes import DISK_NAMES, nbytes
from amatax.checkpoints.header import FETCH, POINTER
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
    with path.open("rb") as raw:
        if raw.read(len(POINTER)) == POINTER:
            raise CheckpointError(f"{path}: not a file of torch.save", FETCH)
    try:
        records = _records(path)
        with FakeTensorMode():
            state = torch.load(path, weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as tensors alone ({reason})", CONVERT) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name", CONVERT)
    entries = []
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: {name!r} is a {type(name).__name__}, not a tensor's name", CONVERT)
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor", CONVERT)
        dtype = DISK_NAMES.get(str(tensor.dtype).removeprefix("torch."))
        plain = tensor.layout is torch.strided
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if plain else None
        if dtype is None or offset is None or not tensor.is_contiguous():
            how = f"strides {tuple(tensor.stride())}" if plain else str(tensor.layout)
            raise CheckpointError(f"{path}: {name!r} ({tensor.dtype}, {how}) is not stored plainly", CONVERT)
        shape = tuple(tensor.shape)
        begin = offset + tensor.storage_offset() * tensor.element_size()
        if nbytes(dtype, shape) and begin + nbytes(dtype, shape) > offset + records.get(offset, -offset):
            raise CheckpointError(f"{path}: {name!r} is not where torch.save would have put it", CONVERT)
        entries.append(TensorEntry(name, dtype, shape, path, begin, nbytes(dtype, shape)))
    names = repr([(e.name, e.dtype, e.shape, e.offset) for e in entries])
    file = WeightFile(
        path, stat.st_size, hashlib.sha256(names.encode()).hexdigest(), stat.st_mtime_ns, stat.st_ctime_ns
    )
    return sorted(entries, key=lambda e: (e.offset, e.name)), file


def _records(path: Path) -> dict[int, int]:
    """Where the bytes of each uncompressed record begin and how many there are, from the zip's own directory.

    torch works the places out from the tensors' sizes, without a look: a file that another program zipped, or whose pickle
    lies about a size, would be read at the wrong ones.
    """
    records = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            if info.filename.endswith("/byteorder") and archive.read(info) != b"little":
                raise ValueError("not little-endian")
            raw.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", raw.read(4))
            if info.compress_type == zipfile.ZIP_STORED:
                records[info.header_offset + 30 + name + extra] = info.file_size
    return records
