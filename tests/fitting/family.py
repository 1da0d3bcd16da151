"""The small model family in the repository, and prompts for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from amatax.recipes.gallery import gallery_folder

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as amatax sets it before it imports torch
FAMILY = gallery_folder() / "family"
REWARD = f"{FAMILY / 'reward.py'}:reward"


def write_prompts(folder: Path, count: int, *more: Any) -> Path:
    """The family's first prompts, and further records, in a file of the test's."""
    lines = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[:count]
    path = folder / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in (*lines, *map(json.dumps, more))))
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
