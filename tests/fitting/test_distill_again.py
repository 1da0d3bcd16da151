"""amatax distill, killed, interrupted, repeated: nothing is sampled twice, nothing of another run is taken."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amatax.errors import OutputError
from tests.fitting.distilling import RECIPE, Distill, Write, in_float32
from tests.fitting.family import REWARD
from tests.forked import FITTING, Job, forks


def test_killed_and_continued_is_as_uninterrupted(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; the end is the same, byte for byte, and what was there was not sampled again."""
    prompts = some_prompts(16)
    distill(prompts, "whole.jsonl", max_new_tokens=24, batch_size=2, reward=REWARD, top=14, draw=9)
    command = ["distill", RECIPE, "--prompts", prompts, "-o", "D.jsonl", "--reward", REWARD, "--top", 14, "--draw", 9]
    command += ["--max-new-tokens", 24, "--batch-size", 2, "--device", "cpu"]
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    before = b""
    for at_least in (2, 6):
        job = forks(*FITTING).start(tmp_path, *map(str, command))
        try:
            until(lambda n=at_least: work.exists() and work.read_bytes().count(b"\n") > n, job)
        finally:
            job.send(signal.SIGKILL)
        assert job.wait().code == -signal.SIGKILL
        assert work.read_bytes().startswith(before)
        before = work.read_bytes()
        assert not (tmp_path / "D.jsonl").exists()
    done = before.count(b"\n") - 1
    with work.open("ab") as file:
        file.write(b'{"item": 15, "respon')  # cut off in the middle of a line
    result = distill(prompts, max_new_tokens=24, batch_size=2, reward=REWARD, top=14, draw=9)
    assert 6 <= done < 16 and result.kept == done
    assert (tmp_path / "D.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    samples = (tmp_path / "D.jsonl.samples.jsonl").read_bytes()
    assert samples == (tmp_path / "whole.jsonl.samples.jsonl").read_bytes()


def until(true: Callable[[], bool], job: Job) -> None:
    """Wait for something that a running job does."""
    end = time.monotonic() + 120
    while not true():
        assert not job.ended() and time.monotonic() < end, "the job ended before it could be killed"
        time.sleep(0.005)


def test_ctrl_c_says_that_it_continues(some_prompts: Write, tmp_path: Path) -> None:
    command = ["distill", RECIPE, "--prompts", some_prompts(40), "-o", "D.jsonl", "--batch-size", 1, "--device", "cpu"]
    job = forks(*FITTING).start(tmp_path, *map(str, command))
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    until(lambda: work.exists() and work.read_bytes().count(b"\n") > 1, job)
    job.send(signal.SIGINT)
    done = job.wait()
    assert done.code == 130
    assert "the same command continues" in done.err
    assert work.exists()


def test_unfinished_work_of_another_run(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    distill(prompts)
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    (tmp_path / "D.jsonl.samples.jsonl").rename(work)
    (tmp_path / "D.jsonl").unlink()
    kept = work.read_bytes()
    with pytest.raises(OutputError, match=r"unfinished work of another run \(differs in seed 0 -> 1\)"):
        distill(prompts, seed=1)
    assert work.read_bytes() == kept
    assert distill(prompts, seed=1, overwrite=True).kept == 0

    work.write_text("somebody's notes\n")
    (tmp_path / "D.jsonl").unlink()
    with pytest.raises(OutputError, match="holds something else"):
        distill(prompts, seed=1)
    assert work.read_text() == "somebody's notes\n"


def test_killed_between_the_two_last_names(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    distill(prompts)
    work, samples = tmp_path / "D.jsonl.unfinished.jsonl", tmp_path / "D.jsonl.samples.jsonl"
    samples.rename(work)
    assert distill(prompts).already
    assert samples.exists() and not work.exists()


def test_two_runs_at_a_time(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    with work.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is distilling"):
            distill(some_prompts(1))
        assert work.exists()


def test_a_changed_model_is_another_run(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    recipe, prompts = in_float32(tmp_path), some_prompts(1)
    distill(prompts, recipe=recipe)
    os.utime(tmp_path / "rlhf" / "model.safetensors")
    with pytest.raises(OutputError, match=r"differs in model\.files"):
        distill(prompts, recipe=recipe)
