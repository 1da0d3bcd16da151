"""What a careful user wants to know of a plan: differences between the inputs, and what is not merged."""

from __future__ import annotations

import json
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry
from amatax.checkpoints.dtypes import INTEGER
from amatax.planning import siblings
from amatax.planning.tensors import PlannedTensor
from amatax.recipes.schema import Recipe


def planned_notes(
    recipe: Recipe,
    checkpoints: dict[str, Checkpoint],
    tensors: dict[str, dict[str, TensorEntry]],
    planned: dict[str, PlannedTensor],
    config_changes: dict[str, Any],
) -> list[str]:
    """The notes of a plan whose tensors are known, one line each.

    Args:
        recipe: whose config and tokenizer are written.
        checkpoints: the opened inputs by role.
        tensors: of every model that is read, by role and SFT's name.
        planned: the tensors of the output, by name.
        config_changes: what is set in the copied config.json.
    """
    notes = [
        f"config: {key}: {json.dumps(value)} is written, as the weights are" for key, value in config_changes.items()
    ]
    sft = checkpoints["sft"]
    for role, entries in tensors.items():
        if role == "sft":
            continue
        notes += siblings.dtype_notes(sft, entries, role)
        notes += [
            f"config: {d} (sft -> {role}; {recipe.output.config}'s is written)"
            for d in siblings.config_differences(sft, checkpoints[role], config_changes)
        ]
        if files := siblings.tokenizer_differences(sft, checkpoints[role]):
            notes.append(
                f"tokenizer: {', '.join(files)} differ between sft and {role}; {recipe.output.tokenizer}'s are copied"
            )
    code = [name for name in checkpoints[recipe.output.config].names if name.endswith(".py") and "/" not in name]
    if code:
        notes.append(f"custom code is copied and never run: {', '.join(code)}")
    copied = [t.name for t in planned.values() if t.dtype in INTEGER]
    if copied:
        notes.append(f"{len(copied)} integer tensors are copied from sft")
    for tensor in planned.values():
        if tensor.averaged_from is not None:
            rows = tensor.shape[0] - tensor.sources["base"].shape[0]
            notes.append(f"the last {rows} rows of {tensor.name!r}, which base lacks, are the average of sft and rlhf")
        elif "base" in tensor.sources and tensors["base"][tensor.name].shape != tensor.shape:
            rows = tensors["base"][tensor.name].shape[0] - tensor.shape[0]
            notes.append(f"the last {rows} rows of base's {tensor.name!r}, which sft and rlhf lack, are left out")
    other = [t for t in planned.values() if t.place.kind == "other"]
    if other:
        ratios = sorted({t.ratio for t in other})
        shown = ", ".join(f"{r:g}" for r in ratios[:3])
        notes.append(
            f"{len(other)} tensors are outside the backbone (`other`), at ratio {shown}; first {other[0].name!r}"
        )
    return notes
