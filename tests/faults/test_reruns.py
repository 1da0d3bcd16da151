"""Merges into one folder at the same time, and again after it is finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.breaking import assert_clear, snapshot
from tests.faults.processes import MERGE, pause_after, without_recipe
from tests.forked import Warm


def test_two_merges_into_one_folder(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """The second is told that the first is at work, and harms nothing."""
    first = warm.start(large, *MERGE)
    pause_after(first, large / "out.unfinished", 3)
    second = warm.run(large, *MERGE)
    assert_clear(second)
    assert "another merge is writing" in second.err
    forced = warm.run(large, *MERGE, "--overwrite")
    assert_clear(forced)
    first.send(signal.SIGCONT)
    answer = first.wait()
    assert answer.code == 0, answer.err
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


def test_a_merge_that_comes_too_late(siblings: Path, warm: Warm) -> None:
    """It planned before the other had finished, and begins after: nothing is merged twice, nothing left behind."""
    late = warm.start(siblings, *MERGE, stop_at=1)
    late.stopped()
    assert warm.run(siblings, *MERGE).code == 0
    whole = snapshot(siblings / "out")
    late.send(signal.SIGCONT)
    answer = late.wait()
    if answer.code != 0:
        assert_clear(answer)
    assert snapshot(siblings / "out") == whole
    left = [p.name for p in siblings.iterdir() if p.name.startswith("out.")]
    assert not left, f"left behind: {left}\n{answer.err}"


def test_many_merges_into_one_folder_at_the_same_moment(siblings: Path, warm: Warm) -> None:
    """Started together: one or more succeed, the others are refused, and one whole folder stands there, nothing beside it."""
    assert warm.run(siblings, "merge", "recipe.yaml", "whole").code == 0
    whole = snapshot(siblings / "whole")
    for round_ in range(6):
        jobs = [warm.start(siblings, *MERGE) for _ in range(3)]
        answers = [job.wait() for job in jobs]
        shown = json.dumps([(a.code, a.err) for a in answers], indent=1)
        assert any(a.code == 0 for a in answers), shown
        for answer in answers:
            if answer.code != 0:
                assert_clear(answer)
                assert "another merge" in answer.err or "finished" in answer.err, shown
        assert snapshot(siblings / "out") == whole
        left = [p.name for p in siblings.iterdir() if p.name.startswith("out.")]
        assert not left, f"round {round_}: left behind: {left}\n{shown}"
        shutil.rmtree(siblings / "out")


def test_finished_is_finished(siblings: Path, warm: Warm) -> None:
    """The same merge again writes nothing."""
    assert warm.run(siblings, *MERGE).code == 0
    before: dict[str, Any] = {p.name: p.stat() for p in (siblings / "out").iterdir()}
    answer = warm.run(siblings, *MERGE)
    assert answer.code == 0 and "finished already" in answer.out
    after = {p.name: p.stat() for p in (siblings / "out").iterdir()}
    assert {n: (s.st_ino, s.st_mtime_ns) for n, s in before.items()} == {
        n: (s.st_ino, s.st_mtime_ns) for n, s in after.items()
    }


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_damaged_folder_is_not_called_finished(damage: str, siblings: Path, warm: Warm) -> None:
    """A shard that is gone or short since: made again or refused, but not "finished already"."""
    assert warm.run(siblings, *MERGE).code == 0
    whole = snapshot(siblings / "out")
    weights = siblings / "out" / "model.safetensors"
    weights.unlink() if damage == "removed" else os.truncate(weights, 1000)
    answer = warm.run(siblings, *MERGE)
    if answer.code == 0:
        assert snapshot(siblings / "out") == whole, answer.out
    else:
        assert_clear(answer)
        assert "model.safetensors" in answer.err
