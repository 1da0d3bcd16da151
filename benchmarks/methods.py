"""Every method beside mergekit's of the same name, on the same three siblings of 2.2 GB, in turn, in one run; CPU.

mergekit runs in the virtual environment that `benchmarks.run` makes, with the flags that were its fastest there.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Cost, measure
from benchmarks.run import ROOT, mergekit

FLAGS = ("--lazy-unpickle", "--async-write", "--no-copy-tokenizer")
PEAK = 500  # MB that amatax may take


class Pair(NamedTuple):
    """A method here and there."""

    peer: str  # what mergekit calls it
    parameters: str  # of mergekit, beside the weights, so that it does the same
    promise: float  # amatax takes at most this share of mergekit's time


PAIRS = {
    "task_arithmetic": Pair("task_arithmetic", "", 1 / 5),
    "slerp": Pair("slerp", "t: 0.4", 1 / 8),
    "dare": Pair("dare_linear", "", 1 / 8),
    "dare_ties": Pair("dare_ties", "normalize: true", 1 / 8),
    "ties": Pair("ties", "", 1 / 20),
    "della": Pair("della", "epsilon: 0.1", 1 / 10),
    "model_stock": Pair("model_stock", "", 1 / 5),
    "breadcrumbs": Pair("breadcrumbs", "gamma: 0.01", 1 / 10),
}
DENSITIES = {"breadcrumbs": 0.9, "task_arithmetic": None, "slerp": None, "model_stock": None}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--no-mergekit", action="store_true")
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "benchmarks.siblings", work], check=True, cwd=ROOT)
    peer = None if args.no_mergekit else mergekit(work)
    print(f"{platform.platform()}, {args.rounds} rounds, medians (memory: maxima)\n", flush=True)
    print("| method | amatax s | CPU s | peak RSS MB | mergekit s | peak RSS MB | amatax / mergekit | promised |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for method in args.methods:
        ours, theirs = [], []
        commands = (recipe(work, method), configuration(work, method))
        for _ in range(args.rounds):
            ours.append(timed([sys.executable, "-m", "amatax", "merge", commands[0], work / "out", "-q"], work))
            if peer:
                theirs.append(timed([peer, commands[1], work / "out", *FLAGS], work))
        print(row(method, ours, theirs), flush=True)


def recipe(work: Path, method: str) -> Path:
    """Ours, at ratio 0.4 everywhere, as mergekit is told."""
    density = DENSITIES.get(method, 0.5)
    options = f", density: {density}" if density else ""
    models = "models: {base: ./M/base, sft: ./M/sft, rlhf: ./M/rlhf}"
    file = work / f"methods-{method}.yaml"
    file.write_text(f"{models}\nmerge: {{method: {method}, ratios: 0.4{options}}}\noutput: {{max_shard_size: 1GB}}\n")
    return file


def configuration(work: Path, method: str) -> Path:
    """mergekit's of the same merge."""
    pair, density = PAIRS[method], DENSITIES.get(method, 0.5)
    base, sft, rlhf = (work / "M" / role for role in ("base", "sft", "rlhf"))
    lines = [
        f"merge_method: {pair.peer}",
        "dtype: bfloat16",
        f"base_model: {sft if method == 'slerp' else base}",
        "models:",
    ]
    for model, weight in ((sft, 0.6), (rlhf, 0.4)):
        lines.append(f"  - model: {model}")
        if method != "slerp":
            lines.append(f"    parameters: {{weight: {weight}{f', density: {density}' if density else ''}}}")
    if pair.parameters:
        lines.append(f"parameters: {{{pair.parameters}}}")
    file = work / f"methods-{method}.yml"
    file.write_text("\n".join(lines) + "\n")
    return file


def timed(command: list[str | Path], work: Path) -> Cost:
    """From an empty output folder."""
    shutil.rmtree(work / "out", ignore_errors=True)
    cost = measure(command, work, env={"PYTHONPATH": str(ROOT / "cli")})
    shutil.rmtree(work / "out", ignore_errors=True)
    return cost


def row(method: str, ours: list[Cost], theirs: list[Cost]) -> str:
    """A line of the table."""
    wall, cpu = (statistics.median(getattr(cost, what) for cost in ours) for what in ("wall", "cpu"))
    line = f"| {method} | {wall:.1f} | {cpu:.1f} | {max(c.peak for c in ours):.0f} (at most {PEAK}) | "
    if not theirs:
        return f"{line}| | | |"
    other, promise = statistics.median(cost.wall for cost in theirs), PAIRS[method].promise
    verdict = "held" if wall / other <= promise else "NOT held"
    return (
        f"{line}{other:.1f} | {max(c.peak for c in theirs):.0f} | {wall / other:.3f} | 1/{1 / promise:.0f}: {verdict} |"
    )


if __name__ == "__main__":
    main()
