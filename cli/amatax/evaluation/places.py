"""Where each tensor on disk lies in a model that transformers has loaded: as it is, or stacked, cut, joined and turned.

transformers says nowhere what it makes of a checkpoint, so it is asked: most tensors are found under their names, with their very
values; for the others a checkpoint of numbered tensors, then of their coordinates, is loaded in the real one's place.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from amatax.checkpoints.dtypes import INTEGER
from amatax.checkpoints.matching import DiskNames
from amatax.errors import CheckpointError
from amatax.planning.plan import Plan

Load = Callable[[dict[str, torch.Tensor]], Any]  # tensors by disk name -> a transformers model, in float32
Box = tuple[slice, ...]


class Place(NamedTuple):
    """Where a part of a tensor lies in the model.

    Attributes:
        memory: a view of a parameter or buffer, of the part's shape.
        part: which elements of the tensor.
    """

    memory: torch.Tensor
    part: Box


def find_places(plan: Plan, model: Any, tensors: Mapping[str, torch.Tensor], load: Load) -> dict[str, list[Place]]:
    """Find the memory of every tensor.

    Args:
        plan: which tensors there are.
        model: of transformers, loaded from `tensors`.
        tensors: by disk name.
        load: the same model's loader, for other tensors.

    Returns:
        By disk name; nothing for those that transformers does not use.

    Raises:
        CheckpointError: if a tensor lies there in a way that is no view.
    """
    places: dict[str, list[Place]] = {}
    names = DiskNames(tensors)
    left: dict[str, torch.Tensor] = {}
    found: set[tuple[int, int]] = set()
    state = dict(model.state_dict())
    for name, memory in state.items():
        disk = names.find(name)
        if len(disk) == 1 and _same(memory, tensors[disk[0]]):
            places.setdefault(disk[0], []).append(Place(memory, tuple(slice(0, n) for n in memory.shape)))
            found.add(_memory(memory))
    for name, memory in state.items():
        if memory.numel() and memory.is_floating_point() and _memory(memory) not in found:
            left[name] = memory
            found.add(_memory(memory))  # of a tied one that is joined one name is enough
    if left:
        unknown = [name for name in tensors if name not in places and plan.tensors[name].dtype not in INTEGER]
        joined = _joined(left, {name: tuple(tensors[name].shape) for name in unknown}, tensors, load)
        for name, parts in joined.items():
            if not all(_same(place.memory, tensors[name][place.part]) for place in parts):
                raise _no_view(name)
        places |= joined
    return places


def _joined(
    left: Mapping[str, torch.Tensor],
    shapes: dict[str, tuple[int, ...]],
    tensors: Mapping[str, torch.Tensor],
    load: Load,
) -> dict[str, list[Place]]:
    """The places of tensors that are parts of others in the model."""
    others = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in tensors.items()}
    numbers = {name: torch.tensor(float(i + 1)).expand(shapes[name]) for i, name in enumerate(shapes)}
    disk = list(shapes)

    def loaded(markers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        marked = load({**others, **markers}).state_dict()
        kept = {name: marked[name].float() for name in left}
        del marked
        gc.collect()  # modules point at each other: without this the next model comes beside this one
        return kept

    boxes: list[tuple[str, str, Box]] = []  # (in the model, on disk, where)
    for name, ids in loaded(numbers).items():
        for number, box in _boxes(name, ids):
            if not 0 < number <= len(disk):
                raise CheckpointError(
                    f"{name!r} has numbers in transformers that no tensor on disk has",
                    "is this the checkpoint's class? Merge with `amatax merge` and evaluate the folder",
                )
            boxes.append((name, disk[number - 1], box))
    axes: list[dict[int, tuple[int, int, int]]] = [{} for _ in boxes]  # disk dim -> (dim in the model, first, count)
    for dim in range(max((len(shape) for shape in shapes.values()), default=0)):
        deep = {name: shape for name, shape in shapes.items() if len(shape) > dim}
        there = loaded({name: _coordinates(shape, dim) for name, shape in deep.items()})
        for (name, of, box), axis in zip(boxes, axes, strict=True):
            if of in deep:
                axis[dim] = _axis(of, there[name][box])
    places: dict[str, list[Place]] = {}
    for (name, of, box), axis in zip(boxes, axes, strict=True):
        order = [where for where, _, count in (axis[dim] for dim in sorted(axis)) if count > 1]
        view = left[name][box]
        if len(set(order)) < len(order) or any(n > 1 for i, n in enumerate(view.shape) if i not in order):
            raise _no_view(of)
        view = view.permute(*order, *(i for i in range(view.dim()) if i not in order))
        for _ in range(view.dim() - len(order)):
            view = view.squeeze(-1)
        for dim in sorted(axis):
            if axis[dim][2] == 1:
                view = view.unsqueeze(dim)
        part = tuple(slice(first, first + count) for _, first, count in (axis[dim] for dim in sorted(axis)))
        places.setdefault(of, []).append(Place(view, part))
    return places


def _boxes(name: str, ids: torch.Tensor) -> list[tuple[int, Box]]:
    """The boxes that a tensor of numbers consists of, each of one number."""
    cuts = []
    for dim, size in enumerate(ids.shape):
        changes = (ids.narrow(dim, 1, size - 1) != ids.narrow(dim, 0, size - 1)).transpose(0, dim).flatten(1).any(1)
        cuts.append([0, *(changes.nonzero().flatten() + 1).tolist(), size])
    corners = ids[torch.meshgrid(*(torch.tensor(cut[:-1]) for cut in cuts), indexing="ij")]
    cells: dict[int, list[tuple[int, ...]]] = {}
    for cell in itertools.product(*(range(len(cut) - 1) for cut in cuts)):
        cells.setdefault(round(float(corners[cell])), []).append(cell)
    found = []
    for number, mine in cells.items():
        low, high = [min(at) for at in zip(*mine, strict=True)], [max(at) for at in zip(*mine, strict=True)]
        if math.prod(last - first + 1 for first, last in zip(low, high, strict=True)) != len(mine):
            raise _no_view(name)
        box = tuple(slice(cut[first], cut[last + 1]) for cut, first, last in zip(cuts, low, high, strict=True))
        if not bool((ids[box] == number).all()):
            raise _no_view(name)
        found.append((number, box))
    return found


def _axis(name: str, there: torch.Tensor) -> tuple[int, int, int]:
    """Along which dimension a coordinate runs, where it begins, and how many there are."""
    first = round(float(there.flatten()[0]))
    for dim, size in enumerate(there.shape):
        along = torch.arange(first, first + size, dtype=there.dtype)
        if size > 1 and bool((there == _spread(along, dim, there.dim())).all()):
            return dim, first, size
    if not bool((there == first).all()):
        raise _no_view(name)
    return 0, first, 1


def _coordinates(shape: tuple[int, ...], dim: int) -> torch.Tensor:
    return _spread(torch.arange(shape[dim], dtype=torch.float32), dim, len(shape)).expand(shape)


def _spread(values: torch.Tensor, dim: int, dims: int) -> torch.Tensor:
    return values.view(*(len(values) if i == dim else 1 for i in range(dims)))


def _same(memory: torch.Tensor, tensor: torch.Tensor) -> bool:
    return memory.shape == tensor.shape and torch.equal(memory, tensor.to(memory.device, memory.dtype))


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _no_view(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name!r}: transformers makes something of it that cannot be merged in its place",
        "merge with `amatax merge` and evaluate the folder",
    )
