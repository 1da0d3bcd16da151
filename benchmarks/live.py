"""From one merge to the next in memory, beside a memcpy of the model's weights, in turn, in one run; and what memory that takes.

The siblings are those of `benchmarks.run` (2.2 GB each, bfloat16). Promised: at most 3 times the memcpy; SFT, RLHF and the live model
in memory, and nothing that grows.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fit_cost import resident
from benchmarks.run import ROOT

PROMISED = 3.0
METHODS = {"average": {}, "ties": {"density": 0.5}, "dare": {"density": 0.5}, "slerp": {}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["average"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(exist_ok=True)
    if not (work / "M" / "rlhf" / "config.json").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.siblings", work], check=True, cwd=ROOT)
    print(f"{platform.platform()}, {args.device}, {args.rounds} rounds, medians (best)\n")
    print(
        "| method | next merge, s | memcpy, s | ratio | promised | CPU s / CPU s | planning, s |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for method in args.methods:
        measure(work / "M", method, args.device, args.rounds)


def measure(models: Path, method: str, device: str, rounds: int) -> None:
    """One method: merges and copies in turn."""
    from amatax.fitting.libraries import import_libraries

    import_libraries()
    import torch

    from amatax.evaluation.live import LiveModel
    from amatax.planning.plan import make_plan
    from amatax.recipes.loading import load_recipe

    torch.ones(1).clone()
    empty = resident()
    refs = {role: str(models / role) for role in ("base", "sft", "rlhf")}
    recipe = load_recipe({"models": refs, "merge": {"method": method, "ratios": 0.5, **METHODS[method]}})
    plan = make_plan(recipe)
    live = LiveModel.open(plan, device)
    weights = {t.data_ptr(): t for t in live.model.state_dict().values()}
    sizes = sum(t.nbytes for t in weights.values())
    held = resident() - empty
    seconds: dict[str, list[float]] = {"merge": [], "plan": [], "copy": []}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}  # what other programs do shows less in it

    def timed(name: str, run: Callable[[], Any]) -> None:
        started, used = time.perf_counter(), time.process_time()
        run()
        if live.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - started)
        cpu[name].append(time.process_time() - used)

    ratios = [round(0.05 + 0.9 * i / rounds, 3) for i in range(rounds)]
    first = None
    for ratio in ratios:
        timed("merge", lambda ratio=ratio: live.set(ratio))
        timed("plan", lambda: make_plan(recipe))
        first = first or resident()
    grown = resident() - first if first else 0.0
    room = [torch.empty_like(t) for t in weights.values()]

    def copy() -> None:
        for to, tensor in zip(room, weights.values(), strict=True):
            to.copy_(tensor)

    copy()
    for ratio in ratios:
        timed("merge", lambda ratio=ratio: live.set(ratio))
        timed("copy", copy)
    wall = {name: statistics.median(times) for name, times in seconds.items()}
    best = {name: min(times) for name, times in seconds.items()}
    busy = {name: statistics.median(times) for name, times in cpu.items()}
    print(
        f"| {method} | {wall['merge']:.3f} ({best['merge']:.3f}) | {wall['copy']:.3f} ({best['copy']:.3f}) "
        f"| {wall['merge'] / wall['copy']:.2f} ({best['merge'] / best['copy']:.2f}) | {PROMISED:g} "
        f"| {busy['merge']:.3f} / {busy['copy']:.3f} = {busy['merge'] / busy['copy']:.2f} "
        f"| {wall['plan']:.3f} ({best['plan']:.3f}) |"
    )
    if live.device.type == "cpu":
        print(
            f"\nin memory, MB: the models {live.nbytes / 1e6:.0f}, the merge {sizes / 1e6:.0f}; resident above an empty "
            f"process {held:.0f}; grown over {rounds} merges {grown:.0f}\n",
            flush=True,
        )
    live.check()


if __name__ == "__main__":
    main()
