"""One tensor of the output: what it is made of, in which dtype, at which ratio."""

from __future__ import annotations

import math
from typing import NamedTuple

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import DISK_NAMES, INTEGER, MERGEABLE
from amatax.methods import method_copies, simplest
from amatax.planning.names import Place
from amatax.recipes.schema import Recipe


class PlannedTensor(NamedTuple):
    """One tensor of the output and what it is made of."""

    name: str
    dtype: str  # on disk, of the output
    shape: tuple[int, ...]
    place: Place
    ratio: float  # share of RLHF
    copy_of: str | None  # the model whose values are taken as they are; None: merged
    sources: dict[str, TensorEntry]  # what is read
    others: dict[str, TensorEntry]  # of a copy: the same tensor in the other models, to tell a mask by
    averaged_from: int | None = None  # the first element that base lacks: from it on SFT and RLHF are averaged

    @property
    def reads(self) -> int:
        """Bytes read; what two models share is read once."""
        shared = {(entry.path, entry.offset): entry.nbytes for entry in self.sources.values()}
        return sum(shared.values()) + sum(entry.reads - entry.nbytes for entry in self.sources.values())


def plan_tensor(
    recipe: Recipe, name: str, place: Place, ratio: float, tensors: dict[str, dict[str, TensorEntry]]
) -> PlannedTensor:
    """How one tensor is made.

    Args:
        recipe: the method, and the output's dtype.
        name: on disk, in SFT.
        place: where in the model it is.
        ratio: its share of RLHF.
        tensors: of every model that is read, by role and SFT's name.
    """
    sft = tensors["sft"][name]
    sources: dict[str, TensorEntry] = {role: entries[name] for role, entries in tensors.items()}
    if sft.dtype in INTEGER or any(entry.dtype not in MERGEABLE for entry in sources.values()):
        # all are read, to note a difference
        return PlannedTensor(name, sft.dtype, sft.shape, place, 0.0, "sft", sources, {})
    dtype = DISK_NAMES[recipe.output.dtype] if recipe.output.dtype else sft.dtype
    copy_of: str | None = method_copies(simplest(recipe.merge.method, recipe.merge.options)[0]).get(ratio)
    others: dict[str, TensorEntry] = {}
    if copy_of is not None:
        others = {role: entry for role, entry in sources.items() if role != copy_of and entry.shape == sft.shape}
        return PlannedTensor(name, dtype, sft.shape, place, ratio, copy_of, {copy_of: sources[copy_of]}, others)
    averaged_from = None
    base = sources.get("base", sft)
    if base.shape != sft.shape:  # another vocabulary, whose common rows are merged
        rows, row = min(base.shape[0], sft.shape[0]), math.prod(sft.shape[1:])
        width = base.nbytes // max(1, math.prod(base.shape))
        sources["base"] = base._replace(shape=(rows, *sft.shape[1:]), nbytes=rows * row * width)
        averaged_from = rows * row if rows < sft.shape[0] else None
    return PlannedTensor(name, dtype, sft.shape, place, ratio, None, sources, {}, averaged_from)
