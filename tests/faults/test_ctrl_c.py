"""Ctrl-C: exit 130, no traceback, the word that a rerun continues, and a rerun that does."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.breaking import snapshot
from tests.faults.processes import MERGE, SHARDS, finished, stamps, without_recipe
from tests.forked import Warm


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
