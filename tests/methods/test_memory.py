"""A device that runs out of memory: smaller chunks first, then a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amatax import api
from amatax.errors import AmataxError
from amatax.methods import average
from amatax.streaming.chunks import LEAST
from tests.methods.family import Counting, recipe, tensors

usual = average.average


def room_for(elements: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the kernel run out of memory above so many elements; returns how many it was asked for."""
    asked: list[int] = []

    def greedy(values: dict[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None) -> torch.Tensor:
        asked.append(len(values["sft"]))
        if asked[-1] > elements:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return usual(values, ratio, out)

    monkeypatch.setattr(average, "average", greedy)
    return asked


def test_smaller_chunks_give_the_same_tensors(
    family_of_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = recipe(family_of_three, tmp_path, "average")
    api.merge(asked_for, tmp_path / "out")
    asked = room_for(1 << 16, monkeypatch)
    api.merge(asked_for, tmp_path / "small", threads=2)
    assert max(asked) > 1 << 16
    one, other = tensors(tmp_path / "out"), tensors(tmp_path / "small")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "out" / "amatax_record.json").read_bytes() == (
        tmp_path / "small" / "amatax_record.json"
    ).read_bytes()


@pytest.mark.parametrize("method", ["average", "ties"])
def test_what_is_read_again_is_told_once(
    family_of_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Progress ends at the total: a tensor begun anew, in smaller chunks, is not counted twice."""
    usually, short = Counting(), Counting()
    api.merge(recipe(family_of_three, tmp_path, method), tmp_path / "out", watcher=usually, threads=1)
    asked = room_for(1 << 14, monkeypatch)
    api.merge(recipe(family_of_three, tmp_path, "average"), tmp_path / "small", watcher=short, threads=1)
    assert max(asked) > 1 << 14
    assert usually.told == usually.total > 0
    assert short.told == short.total > 0


def test_no_room_at_all(family_of_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = room_for(1000, monkeypatch)
    with pytest.raises(AmataxError, match="too little memory: CUDA out of memory") as caught:
        api.merge(recipe(family_of_three, tmp_path, "average"), tmp_path / "out", threads=1)
    assert "--device cpu" in caught.value.hint
    assert min(asked) <= LEAST
    assert not (tmp_path / "out").exists()
