"""Killed (-9): a rerun continues, redoes at most the shard in hand, and ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.breaking import DOWN, assert_clear, edit_tensors, load_all, snapshot
from tests.faults.processes import MERGE, SHARDS, finished, pause_after, stamps, without_recipe
from tests.forked import Warm


def test_killed_at_random_moments(large_family: Path, large_merged: dict[str, bytes], warm: Warm) -> None:
    """kill -9 at eight random moments; every rerun keeps the finished shards and ends in the same bytes."""
    cwd = large_family
    started = time.monotonic()
    assert warm.run(cwd, "merge", "recipe.yaml", "timed").code == 0
    usual = time.monotonic() - started
    shutil.rmtree(cwd / "timed")
    chance = random.Random(2309)
    killed = resumed = 0
    for _ in range(60):  # on a busy machine many moments come too late
        if killed >= 8:
            break
        work = cwd / "killed.unfinished"
        job = warm.start(cwd, "merge", "recipe.yaml", "killed")
        time.sleep(chance.uniform(0.02, 0.8) * usual)
        os.kill(job.pid, signal.SIGKILL)
        was_killed = job.wait().code == -signal.SIGKILL
        killed += was_killed
        assert not ((cwd / "killed").exists() and work.exists())
        kept = stamps(work) if work.exists() else {}
        answer = warm.run(cwd, "merge", "recipe.yaml", "killed")
        assert answer.code == 0, answer.err
        after = stamps(cwd / "killed")
        again = [name for name in kept if after[name] != kept[name]]
        assert len(again) <= 1, f"finished before the kill and written again: {again}"
        resumed += f"continuing: {len(kept) - len(again)} of {SHARDS}" in answer.err
        assert snapshot(cwd / "killed") == large_merged
        assert not work.exists()
        shutil.rmtree(cwd / "killed")
    assert killed >= 8 and resumed >= 3, (killed, resumed)


def test_killed_again_and_again(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """Each run is killed after four more shards; none loses what the ones before it did."""
    done = 0
    while done < SHARDS - 8:
        job = warm.start(large, *MERGE)
        pause_after(job, large / "out.unfinished", done + 4)
        before = stamps(large / "out.unfinished")
        job.send(signal.SIGKILL)
        assert job.wait().code == -signal.SIGKILL
        assert finished(large / "out.unfinished") >= done + 4
        done = finished(large / "out.unfinished")
    answer = warm.run(large, *MERGE)
    assert answer.code == 0, answer.err
    after = stamps(large / "out")
    assert sum(after[name] != before[name] for name in before) <= 1
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


def test_killed_before_every_change_of_the_disk(siblings: Path, warm: Warm) -> None:
    """kill -9 before the first, second, third ... file operation of a merge, up to the last; then a rerun."""
    with (siblings / "recipe.yaml").open("a") as file:
        file.write("output: {max_shard_size: 200KB}\n")
    (siblings / "sft" / "tokenizer.json").write_text("{}")
    events = siblings.parent / "events"
    assert warm.run(siblings, "merge", "recipe.yaml", "whole", events=events).code == 0
    whole, count = snapshot(siblings / "whole"), int(events.read_text().split()[0])
    assert count > 15
    faults = []
    for at in range(1, count + 1):
        answer = warm.run(siblings, *MERGE, die_at=at, events=events)
        assert answer.code == -signal.SIGKILL, (at, answer.err)
        moment = f"killed at event {at}: {events.read_text().splitlines()[1]}"
        if (siblings / "out").exists() and snapshot(siblings / "out").items() < whole.items():
            faults.append(f"{moment}: a partial output folder")
        answer = warm.run(siblings, *MERGE)
        if answer.code != 0:
            faults.append(f"{moment}: exit {answer.code}: {answer.err}")
        elif snapshot(siblings / "out") != whole:
            more = sorted(snapshot(siblings / "out").keys() ^ whole.keys())
            faults.append(f"{moment}: the folder differs from an uninterrupted one: {more or 'in bytes'}")
        left = sorted(p.name for p in siblings.iterdir() if p.name.startswith("out") and p.name != "out")
        if left:
            faults.append(f"{moment}: left behind: {left}")
        for name in ("out", "out.unfinished", "out.replaced"):
            shutil.rmtree(siblings / name, ignore_errors=True)
    assert not faults, "\n".join(faults)


def test_killed_before_every_change_of_an_overwrite(siblings: Path, warm: Warm) -> None:
    """The model that stood there is whole until the new one is, and after the rerun only the new one is there."""
    assert warm.run(siblings, "merge", "recipe.yaml", "new").code == 0
    new = snapshot(siblings / "new")
    (siblings / "other.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 0.9}\n")
    assert warm.run(siblings, "merge", "other.yaml", "old").code == 0
    old = snapshot(siblings / "old")
    events = siblings.parent / "events"
    shutil.copytree(siblings / "old", siblings / "out")
    assert warm.run(siblings, *MERGE, "--overwrite", events=events).code == 0
    count = int(events.read_text().split()[0])
    faults = []
    for at in range(1, count + 1):
        shutil.rmtree(siblings / "out", ignore_errors=True)
        shutil.copytree(siblings / "old", siblings / "out")
        answer = warm.run(siblings, *MERGE, "--overwrite", die_at=at, events=events)
        if answer.code != -signal.SIGKILL:
            break
        moment = f"killed at event {at}: {events.read_text().splitlines()[1]}"
        places = [siblings / name for name in ("out", "out.replaced", "out.unfinished")]
        wholes = [snapshot(place) for place in places if place.exists()]
        if not any(old.items() <= found.items() or new.items() <= found.items() for found in wholes):
            faults.append(f"{moment}: neither the old nor the new model is whole")
        answer = warm.run(siblings, *MERGE, "--overwrite")
        if answer.code != 0 or snapshot(siblings / "out") != new:
            faults.append(f"{moment}: exit {answer.code}, or not the new model: {answer.err[:300]}")
        left = sorted(p.name for p in siblings.iterdir() if p.name.startswith("out."))
        if left:
            faults.append(f"{moment}: left behind: {left}")
        for name in left:
            shutil.rmtree(siblings / name)
    assert not faults, "\n".join(faults)


def test_a_torn_journal_line_costs_one_shard_at_most(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """A crash in the middle of a journal line, then another crash: the second run's shards are not lost."""
    work = large / "out.unfinished"
    for shards in (4, 10):
        job = warm.start(large, *MERGE)
        pause_after(job, work, shards)
        job.send(signal.SIGKILL)
        job.wait()
        with (work / ".amatax" / "journal.jsonl").open("a") as file:
            file.write('{"file": "model-000')
    before = stamps(work)
    answer = warm.run(large, *MERGE)
    assert answer.code == 0, answer.err
    after = stamps(large / "out")
    again = [name for name in before if after[name] != before[name]]
    assert len(again) <= 1, f"written again: {again}"
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


@pytest.mark.parametrize("line", ["{}", "[]", '{"file": 5, "bytes": 1}', "\0"])
def test_a_foreign_journal_line_is_no_bug(line: str, siblings: Path, warm: Warm) -> None:
    """Whatever stands in the journal, the merge ends in the right bytes."""
    with (siblings / "recipe.yaml").open("a") as file:
        file.write("output: {max_shard_size: 200KB}\n")
    assert warm.run(siblings, "merge", "recipe.yaml", "whole").code == 0
    answer = warm.run(siblings, *MERGE, die_at=8)
    assert answer.code == -signal.SIGKILL
    with (siblings / "out.unfinished" / ".amatax" / "journal.jsonl").open("a") as file:
        file.write(line + "\n")
    answer = warm.run(siblings, *MERGE)
    assert answer.code == 0, answer.err
    assert snapshot(siblings / "out") == snapshot(siblings / "whole")


def test_a_shard_damaged_between_two_runs(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """A finished shard that was cut off meanwhile (a crash of the machine) is made again."""
    job = warm.start(large, *MERGE)
    pause_after(job, large / "out.unfinished", 4)
    job.send(signal.SIGKILL)
    job.wait()
    shard = sorted((large / "out.unfinished").glob("*.safetensors"))[1]
    os.truncate(shard, 1000)
    answer = warm.run(large, *MERGE)
    assert answer.code == 0, answer.err
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


def test_nan_found_late_keeps_the_finished_shards(siblings: Path, warm: Warm) -> None:
    """NaN in the second shard: named; with the flag, the run continues after the first."""
    with (siblings / "recipe.yaml").open("a") as file:
        file.write("output: {max_shard_size: 150KB}\n")
    name = DOWN.replace("layers.0", "layers.5")
    edit_tensors(siblings / "sft", lambda t: t[name].view(-1).__setitem__(0, float("nan")))
    answer = warm.run(siblings, *MERGE)
    assert_clear(answer)
    assert name in answer.err
    before = stamps(siblings / "out.unfinished")
    assert before and not (siblings / "out").exists()
    answer = warm.run(siblings, *MERGE, "--allow-nonfinite")
    assert answer.code == 0, answer.err
    after = stamps(siblings / "out")
    assert all(after[file] == before[file] for file in before)
    assert load_all(siblings / "out")[name].isnan().any()
