"""Inputs or recipes that change between two runs, or during one: never mixed into one output."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.breaking import FIRST, assert_clear, snapshot
from tests.faults.processes import MERGE, pause_after, stamps, without_recipe, write_large_recipe
from tests.forked import Warm


def replace_by_next_step(path: Path, *, keep_mtime: bool) -> None:
    """The same header and size, other numbers, as the next step of a training run; by a new file, as savers do."""
    stat = path.stat()
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for at in range(start + 1, len(raw), 4096):
        raw[at] ^= 1
    path.unlink()
    path.write_bytes(raw)
    if keep_mtime:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize("keep_mtime", [False, True])
def test_another_step_of_the_same_run_is_never_mixed_in(keep_mtime: bool, large: Path, warm: Warm) -> None:
    """Interrupted, the weights replaced (even with their old time), run again: a fresh merge of the new ones."""
    job = warm.start(large, *MERGE)
    pause_after(job, large / "out.unfinished", 5)
    job.send(signal.SIGKILL)
    job.wait()
    replace_by_next_step(large / "rlhf" / "model.safetensors", keep_mtime=keep_mtime)
    answer = warm.run(large, *MERGE)
    assert answer.code == 0, answer.err
    assert "changed" in answer.err and "starting over" in answer.err
    assert warm.run(large, "merge", "recipe.yaml", "fresh").code == 0
    assert snapshot(large / "out") == snapshot(large / "fresh")


@pytest.mark.parametrize("keep_mtime", [False, True])
def test_an_input_replaced_during_the_merge(keep_mtime: bool, large: Path, warm: Warm) -> None:
    """Refused with the file's name, nothing finished; the rerun merges the new one."""
    job = warm.start(large, *MERGE)
    pause_after(job, large / "out.unfinished", 5)
    replace_by_next_step(large / "sft" / "model.safetensors", keep_mtime=keep_mtime)
    job.send(signal.SIGCONT)
    answer = job.wait()
    assert_clear(answer)
    assert "sft/model.safetensors" in answer.err and "changed" in answer.err
    assert not (large / "out").exists()
    assert warm.run(large, *MERGE).code == 0
    assert warm.run(large, "merge", "recipe.yaml", "fresh").code == 0
    assert snapshot(large / "out") == snapshot(large / "fresh")


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_an_input_lost_during_the_merge(how: str, large: Path, warm: Warm) -> None:
    """The message names the input, not the output's disk."""
    path = large / "rlhf" / "model.safetensors"
    job = warm.start(large, *MERGE)
    pause_after(job, large / "out.unfinished", 3)
    if how == "removed":
        path.unlink()
    else:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[: len(data) // 20])
    job.send(signal.SIGCONT)
    answer = job.wait()
    assert_clear(answer)
    assert "rlhf/model.safetensors" in answer.err
    assert not (large / "out").exists()


def test_a_finished_folder_of_inputs_that_changed(siblings: Path, warm: Warm) -> None:
    """The same names and headers, other numbers: not finished, but another merge, and said so."""
    assert warm.run(siblings, *MERGE).code == 0
    replace_by_next_step(siblings / "rlhf" / FIRST, keep_mtime=True)
    answer = warm.run(siblings, *MERGE)
    assert_clear(answer)
    assert "--overwrite" in answer.err
    assert warm.run(siblings, *MERGE, "--overwrite").code == 0
    assert warm.run(siblings, "merge", "recipe.yaml", "fresh").code == 0
    assert snapshot(siblings / "out") == snapshot(siblings / "fresh")


def test_other_recipe_after_an_interrupt(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """Unfinished work of another recipe is refused, kept, and replaced only by --overwrite."""
    job = warm.start(large, *MERGE)
    pause_after(job, large / "out.unfinished", 3)
    job.send(signal.SIGKILL)
    job.wait()
    before = stamps(large / "out.unfinished")
    write_large_recipe(large, "0.5")
    answer = warm.run(large, *MERGE)
    assert_clear(answer)
    assert "out.unfinished" in answer.err and "--overwrite" in answer.err
    assert stamps(large / "out.unfinished") == before
    write_large_recipe(large)
    assert warm.run(large, *MERGE).code == 0
    after = stamps(large / "out")
    assert sum(after[name] != before[name] for name in before) <= 1
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)
