"""Tensors of a checkpoint that carries an adapter, for transformers: whole, or as the model's own plus a low-rank product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry
from amatax.checkpoints.dtypes import torch_dtype
from amatax.checkpoints.matching import DiskNames
from amatax.streaming.buffers import Files
from amatax.streaming.low_rank import Delta


class Factors(NamedTuple):
    """A matrix as another one, `base`, changed: (base + left @ right) * scale.

    Attributes:
        left: (rows, r), float32.
        right: (r, columns), float32.
        scale: (rows, 1) or (1, columns): DoRA's; None: 1.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor | None = None

    def part(self, rows: slice) -> Factors:
        """Of some rows."""
        by_row = self.scale is not None and self.scale.shape[1] == 1
        scale = self.scale[rows] if by_row and self.scale is not None else self.scale
        return Factors(self.left[rows], self.right, scale)

    def on(self, base: torch.Tensor) -> torch.Tensor:
        """The matrix, (rows, columns), in the dtype of `base`, float32 or float64."""
        found = torch.addmm(base, self.left.to(base.dtype), self.right.to(base.dtype))
        return found if self.scale is None else found.mul_(self.scale.to(base.dtype))

    def at(self, ids: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """The rows of an embedding that are asked for: (..., columns), float32, `base` the other matrix' own rows."""
        rows = self.left[ids.flatten()]
        by_row = self.scale is not None and self.scale.shape[1] == 1
        scale = self.scale[ids.flatten()] if by_row and self.scale is not None else self.scale
        return Factors(rows, self.right, scale).on(base.flatten(0, -2).float()).view(*ids.shape, -1)


def adapted_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor by its disk name; the files are mapped, what an adapter changes is made anew, in float32 or wider."""
    with Files() as files:
        return {name: _adapted(entry, files) for name, entry in checkpoint.tensors.items()}


def low_rank_changes(
    sft: Checkpoint, rlhf: Checkpoint, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor | Factors] | None:
    """What RLHF has for each of SFT's parameters, if it is SFT's own model with an adapter.

    Args:
        parameters: SFT's, as transformers has loaded them, all names of a tied one.

    Returns:
        By name a tensor, or the factors of what is added: of a matrix that the adapter leaves alone, zeros. None if the models are
        not related like that, or if transformers has joined or turned a tensor that the adapter changes.
    """
    ours, theirs = sft.tensors, rlhf.tensors
    if sft.adapter is not None or ours.keys() != theirs.keys():
        return None
    if rlhf.adapter is None or {file.path for file in rlhf.files} != {file.path for file in sft.files}:
        return None
    changed = {name for name in ours if theirs[name] != ours[name]}
    names, placed = DiskNames(ours), set[str]()
    known: dict[int, torch.Tensor | Factors] = {}
    with Files() as files:
        for name, parameter in parameters.items():
            if id(parameter) not in known:
                disk = names.find(name)
                if len(disk) != 1 or disk[0] not in changed or not _is(parameter, ours[disk[0]]):
                    continue
                placed.add(disk[0])
                known[id(parameter)] = _changed(theirs[disk[0]], files)
    if placed != changed:
        return None
    return {name: known.get(id(parameter), _same(parameter)) for name, parameter in parameters.items()}


def _same(parameter: torch.Tensor) -> torch.Tensor | Factors:
    """What RLHF has where it has SFT's own: nothing of the size of a matrix."""
    if parameter.dim() != 2:
        return parameter.detach()
    rows, columns = parameter.shape
    return Factors(torch.zeros(rows, 1), torch.zeros(1, columns))


def _is(parameter: torch.Tensor, entry: TensorEntry) -> bool:
    """Whether a parameter holds a disk tensor as it is."""
    return parameter.shape == entry.shape and torch.equal(parameter.detach(), mapped(entry).to(parameter.dtype))


def _changed(entry: TensorEntry, files: Files) -> torch.Tensor | Factors:
    change = entry.delta
    if change is None or change.a is None or len(entry.shape) != 2:
        return _adapted(entry, files)
    delta = Delta(entry, torch.float32, torch.device("cpu"), files)
    scale = delta.factors
    if scale is not None:
        scale = scale[None, :] if change.transposed else scale[:, None]
    return Factors(delta.left, delta.right, scale)


def _adapted(entry: TensorEntry, files: Files) -> torch.Tensor:
    tensor = mapped(entry)
    if entry.delta is None:
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    numbers = tensor.to(wide, copy=True).flatten()
    Delta(entry, wide, torch.device("cpu"), files).add_to(numbers, 0, numbers)
    return numbers.view(entry.shape)


def mapped(entry: TensorEntry) -> torch.Tensor:
    """A tensor as it lies in its file."""
    end = entry.offset + entry.nbytes
    raw = torch.from_file(str(entry.path), shared=False, size=end, dtype=torch.uint8)[entry.offset :]
    dtype = torch_dtype(entry.dtype)
    if entry.offset % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(entry.shape)
