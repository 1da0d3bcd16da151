"""Killed, interrupted, stopped: a rerun continues, redoes at most the shard in hand, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.breaking import DOWN, FIRST, assert_clear, edit_tensors, load_all, snapshot
from tests.faults.processes import (
    SHARDS,
    finished,
    hard_linked,
    pause_after,
    stamps,
    write_large_recipe,
)
from tests.forked import Warm

MERGE = ("merge", "recipe.yaml", "out")


def without_recipe(files: dict[str, bytes]) -> dict[str, bytes]:
    """Everything but the two files that name the input folders."""
    return {name: data for name, data in files.items() if not name.startswith("amatax_")}


@pytest.fixture
def large(large_family: Path, tmp_path: Path, large_merged: dict[str, bytes]) -> Path:
    """A place to merge the large siblings in; the inputs are links to the real ones: replace them, never write them."""
    return hard_linked(large_family, tmp_path)


def test_killed_at_random_moments(large_family: Path, large_merged: dict[str, bytes], warm: Warm) -> None:
    """kill -9 at eight random moments; every rerun keeps the finished shards and ends in the same bytes."""
    cwd = large_family
    started = time.monotonic()
    assert warm.run(cwd, "merge", "recipe.yaml", "timed").code == 0
    usual = time.monotonic() - started
    shutil.rmtree(cwd / "timed")
    chance = random.Random(2309)
    killed = resumed = 0
    for _ in range(20):
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


# Ctrl-C


def caught_at_work(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, stopped when it had finished three shards or a few more."""
    command = ["nice", "-n", "19", *command]  # so that this loop gets its turn between two shards
    for _ in range(5):
        job = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while job.poll() is None and finished(cwd / "out.unfinished") < 3:
            time.sleep(0.0005)
        job.send_signal(signal.SIGSTOP)
        if finished(cwd / "out.unfinished") in range(3, SHARDS - 2):
            return job
        job.send_signal(signal.SIGCONT)  # it was faster than this loop
        job.communicate(timeout=60)
        shutil.rmtree(cwd / "out", ignore_errors=True)
    raise AssertionError("never caught at work")


def test_ctrl_c_says_that_a_rerun_continues(large: Path, large_merged: dict[str, bytes]) -> None:
    """`python -m amatax merge`, interrupted in its work: exit 130, the word, and a rerun that continues."""
    command = [sys.executable, "-m", "amatax", *MERGE]
    job = caught_at_work(command, large)
    job.send_signal(signal.SIGINT)
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 130, err
    assert "interrupted" in err and "continues where it stopped" in err and "Traceback" not in err
    assert not (large / "out").exists()
    before = stamps(large / "out.unfinished")
    done = subprocess.run(command, cwd=large, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = stamps(large / "out")
    again = [name for name in before if after[name] != before[name]]
    assert len(again) <= 1, again  # the one in hand
    assert f"continuing: {len(before) - len(again)} of {SHARDS} shards" in done.stderr
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


def test_ctrl_c_at_random_moments(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """Always 130 (or done), never a traceback; the last rerun ends in the same bytes."""
    chance = random.Random(130)
    work = large / "out.unfinished"
    for _ in range(8):
        before = work.exists()
        job = warm.start(large, *MERGE)
        time.sleep(0.03 + chance.uniform(0, 0.25))
        job.send(signal.SIGINT)
        answer = job.wait()
        assert answer.code in (0, 130), (answer.code, answer.err)
        assert "Traceback" not in answer.err, answer.err
        if answer.code == 130 and ("continuing:" in answer.err if before else work.exists()):  # it had begun
            assert "interrupted" in answer.err and "continues where it stopped" in answer.err
    assert warm.run(large, *MERGE).code == 0
    assert without_recipe(snapshot(large / "out")) == without_recipe(large_merged)


def test_ctrl_c_while_it_starts(large: Path) -> None:
    """In the imports too: no traceback, exit 130 (or the signal itself, which shells show as 130, before Python runs)."""
    for delay in (0.4, 0.7, 1.0, 1.3, 1.6):
        command = [sys.executable, "-m", "amatax", *MERGE]
        job = subprocess.Popen(command, cwd=large, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=30)
        assert "Traceback" not in err, f"after {delay} s\n{err}"
        assert job.returncode in (130, -signal.SIGINT) or (large / "out").exists(), f"after {delay} s\n{err}"


# the inputs are still the same files


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


# a fault in the middle keeps what was done


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


# two at once


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
