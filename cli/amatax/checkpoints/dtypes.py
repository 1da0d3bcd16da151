"""The dtypes of safetensors by their names on disk, without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# name on disk: (bits per element, name in torch or None where torch has none), in the order of safetensors' own enum,
# by which it sorts the tensors of a file
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "I16": (16, "int16"),
    "U16": (16, "uint16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, "int32"),
    "U32": (32, "uint32"),
    "F32": (32, "float32"),
    "C64": (64, "complex64"),
    "F64": (64, "float64"),
    "I64": (64, "int64"),
    "U64": (64, "uint64"),
}
MERGEABLE = {"F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F16", "BF16", "F32", "F64"}
INTEGER = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
DISK_NAMES = {torch_name: name for name, (_, torch_name) in DTYPES.items() if torch_name}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor on disk, rounded up."""
    return (math.prod(shape) * DTYPES[dtype][0] + 7) // 8


def torch_name(dtype: str) -> str:
    """'BF16' -> 'bfloat16'; the disk name itself where torch has no such dtype."""
    return DTYPES[dtype][1] or dtype


def torch_dtype(dtype: str) -> torch.dtype:
    """'BF16' -> torch.bfloat16."""
    import torch

    return getattr(torch, torch_name(dtype))
