"""Where a kernel finds its compiled loops, if there are any for its tensors."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


MANY = 1 << 17  # elements, a whole block of a merge's: a model without one so large is merged before numba has started


def loops(*tensors: torch.Tensor) -> Any:
    """The module `_loops`, for many elements on the CPU (not of float16, which numba does not know); None where torch does it: also on a
    GPU, and where numba does not know Python yet."""
    for x in tensors:
        if x.numel() < MANY or not (x.is_cpu and _kind(x.dtype) and x.is_contiguous()):
            return None
    return _module()


@cache
def _module() -> Any:
    try:
        import numba

        from amatax.methods import _loops
    except ImportError:
        return None
    return None if getattr(numba.config, "DISABLE_JIT", 0) else _loops  # Python would take bfloat16's bits for numbers


def in_order(sample: torch.Tensor, count: int) -> torch.Tensor:
    """A copy of whole numbers on the CPU or a GPU, sorted. For a tensor of many elements numpy is here, and sorts faster than torch."""
    if not sample.is_cpu or count < MANY or _module() is None:
        return sample.sort().values
    copy = sample.clone()
    array(copy).sort()
    return copy


class _Memory:
    """Memory as numpy asks for it: a merge imports torch without its bridge to numpy, which takes time."""

    def __init__(self, address: int, count: int, kind: str) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (count,), "typestr": kind, "version": 3}


def array(tensor: torch.Tensor) -> Any:
    """The memory of a tensor (n,) as numpy sees it, as long as the tensor is there; bfloat16 as uint16."""
    return _array(tensor.data_ptr(), tensor.numel(), _kind(tensor.dtype))


@cache
def _kind(dtype: torch.dtype) -> str:
    """numpy's name of it; of bfloat16, which it has not, that of two bytes; "" of float16."""
    if not dtype.is_floating_point:
        return f"<i{dtype.itemsize}"
    return f"<f{dtype.itemsize}" if dtype.itemsize > 2 else "<u2" if str(dtype) == "torch.bfloat16" else ""


@lru_cache(maxsize=64)  # a merge's buffers, which are the same for every block
def _array(address: int, count: int, kind: str) -> Any:
    import numpy as np

    return np.asarray(_Memory(address, count, kind))
