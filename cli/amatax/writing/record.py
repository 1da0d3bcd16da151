"""The record of a finished merge: the recipe that makes it again, and a checksum of every tensor read and written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from amatax.checkpoints.folder import read_json
from amatax.errors import CheckpointError
from amatax.planning.destination import RECIPE, RECORD
from amatax.planning.identity import FORMAT
from amatax.planning.plan import Plan
from amatax.recipes.loading import dump_recipe
from amatax.streaming.chunks import TensorResult
from amatax.writing.side_files import write_json


def shard_entry(file: str, size: int, plan: Plan, results: dict[str, TensorResult]) -> dict[str, Any]:
    """What the journal, and at the end the record, say of a finished shard."""
    return {
        "file": file,
        "bytes": size,
        "tensors": {name: {"ratio": plan.tensors[name].ratio, **r.checksums} for name, r in sorted(results.items())},
        "change": {name: [r.change, r.lost] for name, r in sorted(results.items()) if r.change},
        "differs": sorted(name for name, r in results.items() if r.differs),
    }


def rounded_away(entries: list[dict[str, Any]]) -> float | None:
    """The part of the mean |merged - sft| that the output dtype rounded away, in the sampled elements; None if none changed."""
    pairs = [pair for entry in entries for pair in entry["change"].values()]
    change, lost = (sum(pair[i] for pair in pairs) for i in (0, 1))
    return lost / change if change else None


def write_record(folder: Path, plan: Plan, entries: list[dict[str, Any]]) -> None:
    """Write amatax_recipe.yaml and amatax_record.json; every other file of the folder must be there."""
    recipe = plan.recipe.model_copy(update={"output": plan.recipe.output.model_copy(update={"path": None})})
    header = "# What this folder was merged from: `amatax merge THIS_FILE OUTPUT` makes the same weights again.\n"
    (folder / RECIPE).write_text(header + dump_recipe(recipe), encoding="utf-8")
    small = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    record = {
        "format": FORMAT,
        "identity": plan.identity,
        "models": {
            role: {
                "ref": checkpoint.pinned,
                **({"adapter": checkpoint.adapter.pinned} if checkpoint.adapter is not None else {}),
                "files": {
                    name: {"bytes": file.size, "header_sha256": file.header} for name, file, _ in checkpoint.inputs
                },
            }
            for role, checkpoint in plan.checkpoints.items()
        },
        "checksum": "xxh3_128",
        "shards": {entry["file"]: entry["bytes"] for entry in entries},
        "files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in small
            if not str(path.relative_to(folder)).startswith(".amatax")
        },
        "tensors": {name: sums for entry in entries for name, sums in entry["tensors"].items()},
    }
    if carried := {entry["file"]: entry["carried"] for entry in entries if "carried" in entry}:
        record["carried"] = carried  # sha256 of the shards that are not here any more
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished folder.

    Raises:
        CheckpointError: if there is none, or it is not one.
    """
    record = read_json(folder / RECORD)
    tensors, files = record.get("tensors"), record.get("files")
    if not (
        isinstance(tensors, dict) and isinstance(files, dict) and all(isinstance(t, dict) for t in tensors.values())
    ):
        raise CheckpointError(f"{folder / RECORD}: not a record of amatax", "merge it again with --overwrite")
    return record
