"""Run the sweeps by the command line, several at a time; what is done is not done again.

Every process computes with one thread: sums then do not hang on how many cores there are, and two sweeps side by side are quicker
than two threads of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import yaml

from amatax.evaluation.files import write_whole
from amatax.evaluation.sweeping import JOURNAL
from benchmarks.reproduce.grid import ANSWER, FAMILY, FIRST, KEPT, PROMPTS, ROOT, Sweep, measures, recipe

STANDING = ("sft", "rlhf")
AT_ONCE = 100  # samples that are generated at once


def run_all(sweeps: Sequence[Sweep], work: Path, jobs: int) -> None:
    """Every sweep into its folder of `work`.

    Raises:
        SystemExit: when a command failed; the same command continues.
    """
    (work / "data").mkdir(parents=True, exist_ok=True)
    kept = (FAMILY / "data" / "keep.jsonl").read_text().splitlines(keepends=True)
    prompts = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines(keepends=True)
    _write(work / "data" / "keep.jsonl", "".join(kept[:KEPT]))
    _write(work / "data" / "kept-apart.jsonl", "".join(kept[KEPT:]))
    _write(work / "data" / "prompts.jsonl", "".join(prompts[:PROMPTS]))
    _write(work / "measures.yaml", yaml.safe_dump(measures(work / "data" / "kept-apart.jsonl"), sort_keys=False))
    seeds = list(dict.fromkeys(sweep.seed for sweep in sweeps if sweep.data and sweep.seed is not None))
    _in_parallel([partial(_sweep, work, FIRST), *(partial(_distil, work, seed) for seed in seeds)], jobs)
    _in_parallel([partial(_sweep, work, sweep) for sweep in sweeps if sweep != FIRST], jobs)


def _distil(work: Path, seed: int) -> None:
    _amatax(
        "distill", str(_recipe(work, Sweep("distil", {}, ()))), "--prompts", str(work / "data" / "prompts.jsonl"),
        "-o", str(_responses(work, seed)), "--seed", str(seed), "--max-new-tokens", str(ANSWER),
        "--batch-size", str(AT_ONCE), "--device", "cpu", "--quiet", name=f"distil {seed}",
    )  # fmt: skip


def _sweep(work: Path, sweep: Sweep) -> None:
    if sweep != FIRST:
        begin_journal(work / FIRST.name / JOURNAL, work / sweep.name / JOURNAL)
    fit = ("--data", str(_responses(work, sweep.seed)), "--keep", str(work / "data" / "keep.jsonl"))
    _amatax(
        "sweep", str(_recipe(work, sweep)), "-o", str(work / sweep.name), *sweep.options, *(fit if sweep.data else ()),
        "--measures", str(work / "measures.yaml"), "--reward", f"{FAMILY / 'reward.py'}:reward",
        "--batch-size", str(AT_ONCE), "--device", "cpu", "--quiet", name=sweep.name,
    )  # fmt: skip


def begin_journal(first: Path, ours: Path) -> None:
    """Begin a sweep's journal with what another sweep knows of SFT and RLHF, so that they are measured once.

    The facts that this hangs on (the models, the measures and their data, the device) go along, and the sweep refuses them if they are
    not its own.
    """
    if ours.exists():
        return
    kept = []
    for line in first.read_text(encoding="utf-8").splitlines(keepends=True):
        entry = json.loads(line)
        fact, _, what = entry.get("fact", "").partition(" ")
        both = fact in ("model", "point") and what in STANDING
        if "sweep" in entry or both or fact in ("measure", "device", "output") or entry.get("point") in STANDING:
            kept.append(line)
    ours.parent.mkdir(parents=True, exist_ok=True)
    write_whole(ours, "".join(kept).encode())


def _responses(work: Path, seed: int | None) -> Path:
    return work / "data" / f"responses-{seed}.jsonl"


def _recipe(work: Path, sweep: Sweep) -> Path:
    path = work / "recipes" / f"{sweep.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    _write(path, yaml.safe_dump(recipe(sweep), sort_keys=False))
    return path


def _write(path: Path, text: str) -> None:
    """Only what is new: a rerun finds the files as they were."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _amatax(*words: str, name: str) -> None:
    path = os.pathsep.join([str(ROOT / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])])
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", "amatax", *words], env={**os.environ, **one}, check=True)
    print(f"done: {name}", flush=True)


def _in_parallel(steps: Sequence[Callable[[], None]], jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(step) for step in steps]
        try:
            for one in running:
                one.result()
        except subprocess.CalledProcessError as error:
            pool.shutdown(cancel_futures=True)
            raise SystemExit(f"{error}: the same command continues with what is done") from None
