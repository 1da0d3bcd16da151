"""When two merges are the same: the recipe as it will mean tomorrow, and a digest of all that the output depends on."""

from __future__ import annotations

import hashlib
import json

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.methods import options_model
from amatax.planning.layout import Shard
from amatax.recipes.schema import Merge, Ratios, Recipe

FORMAT = 1  # of the record; part of the identity


def pin(recipe: Recipe, ratios: Ratios, checkpoints: dict[str, Checkpoint]) -> Recipe:
    """The recipe with Hub models at their commits and the method's defaults written out, so that it means the same tomorrow."""
    commits: dict[str, str] = {}
    for role, checkpoint in checkpoints.items():
        commits[role] = checkpoint.pinned
        if checkpoint.adapter is not None:
            commits[f"{role} adapter"] = checkpoint.adapter.pinned
    options = options_model(recipe.merge.method).model_validate(recipe.merge.options).model_dump()
    merge = Merge.model_validate({**recipe.merge.model_dump(), **options, "ratios": ratios})
    models = recipe.models.renamed(lambda key, ref: commits.get(key, ref))
    result = recipe.model_copy(update={"models": models, "merge": merge})
    result._origin = recipe._origin
    return result


def _adapter(checkpoint: Checkpoint) -> dict[str, str]:
    """What the identity says of an adapter; nothing where there is none."""
    return {"adapter": checkpoint.adapter.pinned} if checkpoint.adapter is not None else {}


def merge_identity(recipe: Recipe, checkpoints: dict[str, Checkpoint], shards: list[Shard]) -> str:
    """sha256 over what the output's tensors depend on, without times and without the output's path."""
    content = {
        "format": FORMAT,
        "models": {
            role: {"ref": c.pinned, "files": [(i.name, i.file.size, i.file.header) for i in c.inputs], **_adapter(c)}
            for role, c in sorted(checkpoints.items())
        },
        "merge": recipe.merge.model_dump(mode="json"),
        "output": recipe.output.model_dump(mode="json", exclude={"path"}),
        "shards": [hashlib.sha256(shard.header).hexdigest() for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
