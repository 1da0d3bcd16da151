"""A sample of a large tensor: some parts of a file that is here, all of one that is far, where each part would be a request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amatax.methods import bind
from amatax.planning.plan import make_plan
from amatax.recipes.schema import Recipe
from amatax.streaming import chunks
from amatax.streaming.buffers import Files
from amatax.streaming.chunks import Worker

FAMILY = Path(__file__).resolve().parents[2] / "merge_recipes" / "family"
ROLES = ("base", "sft", "rlhf")
NAME = "lm_head.weight"


class Counting(Files):
    """Remembers what was read."""

    def __init__(self, parts: bool) -> None:
        super().__init__()
        self.parts, self.seen = parts, list[tuple[Path, int, int]]()

    def read(self, path: Path, into: memoryview, offset: int) -> None:
        self.seen.append((path, offset, len(into)))
        super().read(path, into, offset)


def merged(parts: bool) -> tuple[bytes, int, int]:
    """(the bytes that come out, bytes read, reads that do not begin where the last one of the file ended)."""
    recipe = Recipe.model_validate(
        {"models": {role: str(FAMILY / role) for role in ROLES}, "merge": {"method": "ties", "ratios": 0.4}}
    )
    files, out = Counting(parts), bytearray()
    worker = Worker(
        bind("ties", {}),
        ROLES,
        1 << 14,
        1 << 12,
        torch.device("cpu"),
        files,
        lambda tensor, begin, data: out.extend(data),
    )
    worker.run(make_plan(recipe).tensors[NAME])
    ends: dict[Path, int] = {}
    jumps = 0
    for path, offset, size in files.seen:
        jumps += ends.get(path, offset) != offset
        ends[path] = offset + size
    return bytes(out), sum(size for *_, size in files.seen), jumps


def test_a_far_file_is_read_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "RUN", 256)
    monkeypatch.setattr(chunks, "LARGE", 1 << 14)
    near, less, jumps = merged(parts=True)
    far, more, passes = merged(parts=False)
    assert near == far
    assert less < more
    assert jumps > 3 * 20 > passes
