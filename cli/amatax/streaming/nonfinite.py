"""NaN, infinities and overflow: named where they are, but for the infinities of a mask, which are the same in every model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from amatax.checkpoints.dtypes import torch_dtype
from amatax.errors import NonFiniteError
from amatax.planning.tensors import PlannedTensor
from amatax.streaming.buffers import Bytes, Files

WIDER = {"BF16": "float32", "F32": "float64"}  # what a value that overflows one dtype fits in


def finite(values: torch.Tensor) -> bool:
    """Whether all are finite, by their sum; a sum that overflowed is looked at closely."""
    return math.isfinite(values.sum(dtype=torch.float32)) or bool(values.to(torch.float64).isfinite().all())


def check_copy(tensor: PlannedTensor, copied: str, values: torch.Tensor, first: int, files: Files) -> None:
    """Look at values that are copied as they are.

    Args:
        values: of any float dtype; the first of them is element `first` of the tensor.

    Raises:
        NonFiniteError: if some are not finite, and not those of a mask.
    """
    if not finite(values if values.element_size() > 1 else values.float()):
        seen = values.to(torch.float64).masked_fill(_mask(tensor, values, first, files), 0)
        _name_nonfinite(tensor, {copied: seen}, first, files)


def check_merged(
    tensor: PlannedTensor,
    values: Mapping[str, torch.Tensor],
    out: torch.Tensor,
    first: int,
    files: Files,
    *,
    allow: bool,
) -> None:
    """Look closer where a sum was not finite: equal infinities stay, overflow and anything else is an error.

    Args:
        values: the models', float64, on the CPU.
        out: the merged ones, in the output's dtype; put right where all models hold the same infinity.
        first: which element of the tensor the first one is.
        allow: NaN, always of the same bits, and infinities pass.

    Raises:
        NonFiniteError: naming the file, or the merged element.
    """
    roles = list(values)
    equal = torch.ones_like(values[roles[0]], dtype=torch.bool)
    for role in roles[1:]:
        equal &= values[role] == values[roles[0]]
    if len(roles) > 1:
        out[equal] = values[roles[0]][equal].to(out.dtype)  # inf - inf is NaN, but a mask's -inf is -inf in both
    if allow:
        if out.element_size() > 1:  # a float8 has one NaN, or two
            out.masked_fill_(out.isnan(), math.nan)  # one of them, whatever the device makes
        return
    # an infinity of one model is an error; of both, at the same place, a mask
    masks = equal & values[roles[0]].isinf() if len(roles) > 1 else _mask(tensor, values[roles[0]], first, files)
    _name_nonfinite(tensor, {role: chunk.masked_fill(masks, 0) for role, chunk in values.items()}, first, files)
    written = out.to(torch.float64).masked_fill(masks, 0)
    if not written.isfinite().all():
        at = first + int((~written.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"{tensor.name!r}: a merged value overflows {tensor.dtype} (element {at})",
            f"choose a wider `output.dtype`, such as {WIDER.get(tensor.dtype, 'bfloat16')}",
        )


def _mask(tensor: PlannedTensor, values: torch.Tensor, first: int, files: Files) -> torch.Tensor:
    """Where a model whose values are taken alone holds an infinity that the other models hold too."""
    mine = values.to("cpu", torch.float64)
    mask = mine.isinf()
    for entry in tensor.others.values():
        n, width = len(mine), entry.nbytes // math.prod(entry.shape)
        there = Bytes(n * width)
        files.read(entry.path, there.view, entry.offset + first * width)
        mask &= there.numbers(torch_dtype(entry.dtype), n).to(torch.float64) == mine
    return mask if tensor.others else torch.zeros_like(mask)


def _name_nonfinite(tensor: PlannedTensor, values: Mapping[str, torch.Tensor], first: int, files: Files) -> None:
    for role, chunk in values.items():
        bad = ~chunk.to(torch.float64).isfinite()
        if bad.any():
            at = int(bad.nonzero()[0])
            entry = tensor.sources[role]
            file = files.named(entry.path) + (f" with {entry.delta.b.path}" if entry.delta else "")
            raise NonFiniteError(
                f"{file}: {tensor.name!r} of {role} holds {float(chunk[at]):g} (element {first + at})",
                "the checkpoint is probably broken; --allow-nonfinite merges it all the same",
            )
