"""What the tests of amatax distill share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from amatax.recipes.gallery import find_recipe
from tests.fitting.family import FAMILY

RECIPE = find_recipe("quickstart")
Write = Callable[..., Path]
Distill = Callable[..., Any]


def in_float32(folder: Path) -> Path:
    """The family's RLHF model in float32 in `folder`, with a recipe: rounding is far from every draw."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(FAMILY / "rlhf", folder / "rlhf")
    weights = folder / "rlhf" / "model.safetensors"
    save_file({k: v.to(torch.float32) for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((folder / "rlhf" / "config.json").read_text())
    (folder / "rlhf" / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"models": {"sft": str(FAMILY / "sft"), "rlhf": "./rlhf"}}))
    return recipe
