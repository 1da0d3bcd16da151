"""Where a kernel finds its compiled loops, if there are any for its tensors."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


MANY = 1 << 17  # elements, a whole block of a merge's: a model without one so large is merged before numba has started


def loops(*tensors: torch.Tensor) -> Any:
    """The module `_loops`, for many elements on the CPU; None where torch does it: on a GPU, and where numba does not know Python yet."""
    usable = all(len(x) >= MANY and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    return _module() if usable else None


@cache
def _module() -> Any:
    try:
        from amatax.methods import _loops
    except ImportError:
        return None
    return _loops


class _Memory:
    """A tensor, as numpy asks for memory: a merge imports torch without its bridge to numpy, which takes time."""

    def __init__(self, tensor: torch.Tensor) -> None:
        kind = "f" if tensor.is_floating_point() else "i"
        data = (tensor.data_ptr(), False)
        self.tensor = tensor  # lives as long
        self.__array_interface__ = {
            "data": data,
            "shape": (len(tensor),),
            "typestr": f"<{kind}{tensor.itemsize}",
            "version": 3,
        }


def array(tensor: torch.Tensor) -> Any:
    """The memory of a tensor (n,) as numpy sees it."""
    import numpy as np

    return np.asarray(_Memory(tensor))


def bits(tensor: torch.Tensor) -> Any:
    """The bits of float32 numbers, int32, in the same memory."""
    import torch

    return array(tensor.view(torch.int32))
