"""Merge a finished folder again from its record, and compare bit for bit without writing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from amatax.errors import OutputError
from amatax.planning.plan import Plan
from amatax.planning.tensors import PlannedTensor
from amatax.streaming.buffers import Files
from amatax.streaming.stream import Streamer
from amatax.writing.record import read_record


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        compared: tensors merged again.
        different: tensors whose bytes on disk are not what the recipe gives.
        inputs: (role, tensor) whose input bytes are no longer those recorded.
        files: files beside the tensors that changed or vanished, and weights that the merge did not write.
    """

    compared: int = 0
    different: list[str] = field(default_factory=list)
    inputs: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing differs."""
        return not (self.different or self.inputs or self.files)


def verify_folder(
    folder: Path,
    plan: Plan,
    streamer: Streamer,
    sample: int | None = None,
    wait: Callable[[], None] = lambda: None,
) -> Verdict:
    """Compare a folder with its recorded merge.

    Args:
        folder: a finished output.
        plan: made from its recorded recipe.
        sample: so many tensors, drawn with a fixed seed; None: all.

    Raises:
        OutputError: if an input's files are laid out otherwise than when they were merged, or a shard is missing.
    """
    record = read_record(folder)
    for role, checkpoint in plan.checkpoints.items():
        headers = {name: {"bytes": f.size, "header_sha256": f.header} for name, f, _ in checkpoint.inputs}
        if record.get("models", {}).get(role, {}).get("files") != headers:
            raise OutputError(
                f"{role} ({checkpoint.ref}) is another checkpoint than was merged: its files have other sizes or headers",
                f"bring back the checkpoint that {folder} was merged from, or merge it again with --overwrite",
            )
    names = list(plan.tensors)
    if sample is not None and sample < len(names):
        names = sorted(random.Random(0).sample(names, sample))
    where: dict[str, tuple[Path, int]] = {}
    for shard in plan.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.nbytes:
            raise OutputError(f"{path}: missing, or not {shard.nbytes:,} bytes long", "merge it again")
        with path.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                raise OutputError(f"{path}: its header is not the recipe's", "merge it again")
        where |= {name: (path, offset) for name, offset in shard.offsets.items()}

    verdict = Verdict(compared=len(names))
    different: set[str] = set()
    with Files() as files:

        def compare(tensor: PlannedTensor, begin: int, data: memoryview) -> None:
            path, offset = where[tensor.name]
            if not begin:  # perhaps anew
                different.discard(tensor.name)
            there = memoryview(bytearray(len(data)))
            files.read(path, there, offset + begin)
            if there != data:
                different.add(tensor.name)

        results = streamer.run((plan.tensors[name] for name in names), compare, wait)
    for name in names:
        recorded = record["tensors"].get(name, {})
        for role, checksum in results[name].checksums.items():
            if role != "output" and recorded.get(role) not in (None, checksum):
                verdict.inputs.append((role, name))
        if name in different or recorded.get("output") is None:
            verdict.different.append(name)
    for name, digest in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            verdict.files.append(name)
    weights = {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")}
    verdict.files += sorted(weights - {shard.file for shard in plan.shards})
    return verdict
