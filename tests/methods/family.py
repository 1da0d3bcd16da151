"""Three siblings, and recipes for them by every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from amatax import api

OPTIONS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": 0.8},
    "ties": {"density": 0.3},
    "dare": {"density": 0.4, "seed": 5},
    "dare_ties": {"density": 0.4, "rescale": False},
    "della": {"density": 0.5, "epsilon": 0.25},
    "breadcrumbs": {"density": 0.7, "gamma": 0.1},
    "model_stock": {},
    "slerp": {},
    "average": {},
}


class Counting(api.Watcher):
    """Progress: what there is, and what was told."""

    total, told = 0, 0

    def start(self, total: int) -> None:
        self.total = total

    def advance(self, n: int) -> None:
        self.told += n


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def recipe(folder: Path, at: Path, method: str, ratios: Any = 0.4, **output: Any) -> Path:
    models = {role: str(folder / role) for role in ("base", "sft", "rlhf")}
    data = {"models": models, "merge": {"method": method, "ratios": ratios, **OPTIONS[method]}, "output": output}
    (at / f"{method}.yaml").write_text(yaml.safe_dump(data))
    return at / f"{method}.yaml"
