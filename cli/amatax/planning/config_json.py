"""What config.json says of the weights that are written, and must say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, tie_flag
from amatax.checkpoints.dtypes import MERGEABLE, torch_name
from amatax.errors import Fault
from amatax.planning.tensors import PlannedTensor
from amatax.recipes.schema import Recipe


def config_changes(
    recipe: Recipe, source: Checkpoint, tensors: Sequence[PlannedTensor], tied: bool | None
) -> dict[str, Any]:
    """What config.json must say of the weights and does not."""
    changes: dict[str, Any] = {}
    amounts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in MERGEABLE:
            amounts[tensor.dtype] = amounts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    if amounts:
        dtype = torch_name(max(amounts, key=lambda d: amounts[d]))
        said = source.config.get("dtype", source.config.get("torch_dtype"))
        if said != dtype:
            changes["dtype"] = dtype
    if tied is not None and tie_flag(source.config) not in (tied, None if tied else False):
        changes["tie_word_embeddings"] = tied
    return changes


def config_faults(recipe: Recipe, checkpoints: dict[str, Checkpoint]) -> list[Fault]:
    """Base's config, where the rows that are written are those of another vocabulary."""
    base, sft = (checkpoints[role].config.get("vocab_size") for role in (recipe.output.config, "sft"))
    if recipe.output.config != "base" or base is None or sft is None or base == sft:
        return []
    message = f"base's config.json says vocab_size {base}, and the tensors that are written have sft's {sft}"
    return [Fault(message, recipe.where("output", "config"), "`config: sft`, and its tokenizer with it")]
