"""Everything in a model folder that is no tensor: the planned copies, config.json and the index."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from amatax.checkpoints.folder import inside
from amatax.planning.plan import Plan
from amatax.planning.side_files import changed_config


def write_side_files(plan: Plan, folder: Path) -> None:
    """Copy the side files, then write config.json (as it was, if it is already true to the weights) and the index."""
    for name, source in plan.side_files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)
    checkpoint = plan.checkpoints[plan.recipe.output.config]
    if plan.config_changes:
        config = changed_config(checkpoint.config, plan.config_changes)
        write_json(folder / "config.json", config)
    else:
        shutil.copyfile(inside(checkpoint.folder, "config.json", checkpoint.root), folder / "config.json")
    if len(plan.shards) > 1:
        write_json(folder / "model.safetensors.index.json", index(plan))


def index(plan: Plan) -> dict[str, Any]:
    """model.safetensors.index.json, as transformers writes it."""
    total = sum(shard.nbytes - len(shard.header) for shard in plan.shards)
    parameters = sum(math.prod(tensor.shape) for tensor in plan.tensors.values())
    weight_map = {name: shard.file for shard in plan.shards for name in shard.offsets}
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }


def write_json(path: Path, value: Any) -> None:
    """As transformers formats JSON: two spaces, a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        data = (json.dumps(value, indent=2) + "\n").encode()
    path.write_bytes(data)
