"""A front of 11 uniform and 12 block-wise merges of the family: `amatax sweep`, beside mergekit that writes each of them and `amatax
evaluate` that loads and measures it, in turn, in one run; CPU. The measures, and the code that takes them, are the same.

mergekit's folders are measured each by a process of its own, as in a loop over merges, and once more all in one process, which no loop
does that deletes a merge before it writes the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import measure
from benchmarks.run import ROOT, mergekit

UNIFORM = tuple(i / 10 for i in range(11))
GRID = (0.0, 0.3, 0.6, 1.0)
LAYERS, LOWER = 9, 4  # of the family, and of the first of two blocks
FAMILY = ROOT / "merge_recipes" / "family"
REWARD = ("--reward", f"{FAMILY / 'reward.py'}:reward", "--batch-size", "100")
EVALUATE = ("evaluate", "--measures", FAMILY.parent / "evaluate.yaml", "--sft", FAMILY / "sft", *REWARD)
PROMISED = 3.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(exist_ok=True)
    peer = mergekit(work)
    front = work / "front"
    shutil.rmtree(front, ignore_errors=True)
    front.mkdir()
    grid = ("--grid", ",".join(map(str, GRID)), "--blocks", "2")
    sweep, live = amatax(["sweep", "evaluate", "-o", front / "sweep", *grid, *REWARD], front)
    points = [(r, r) for r in UNIFORM] + [pair for pair in itertools.product(GRID, repeat=2) if pair[0] != pair[1]]
    folders = [front / f"{first:g}-{second:g}" for first, second in points]
    written = apart = 0.0
    for folder, point in zip(folders, points, strict=True):
        config = front / "mergekit.yml"
        config.write_text(configuration(*point))
        written += measure([peer, config, folder], front).wall
        apart += amatax([*EVALUATE, folder], front)[0]
    together, files = amatax([*EVALUATE, *folders], front)
    print(f"{platform.platform()}, {len(points)} merges, 4 measures and the lengths of the answers\n")
    print("| | s | of them writing | / sweep | promised |\n|---|---|---|---|---|")
    print(f"| amatax sweep | {sweep:.1f} | 0 | 1 | |")
    for name, measured in (("each measured by a process", apart), ("all measured by one process", together)):
        wall = written + measured
        verdict = "held" if wall >= PROMISED * sweep else "NOT held"
        print(f"| mergekit, {name} | {wall:.1f} | {written:.1f} | {wall / sweep:.2f} | {PROMISED:g}: {verdict} |")
    print(f"\nlargest difference of the uniform points' abilities: {difference(live, files):.4f}")


def amatax(arguments: Sequence[str | Path], work: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of a command, and what it says."""
    cost = measure(
        [sys.executable, "-m", "amatax", *arguments, "-q", "--json"], work, env={"PYTHONPATH": str(ROOT / "cli")}
    )
    return cost.wall, json.loads((work / "command.log").read_text())


def configuration(first: float, second: float) -> str:
    """mergekit's of a merge with these shares of RLHF in both blocks, and their mean elsewhere, as amatax has it."""
    lines = ["merge_method: linear", "dtype: bfloat16", "models:"]
    for role in ("sft", "rlhf"):
        low, high = (r if role == "rlhf" else 1 - r for r in (first, second))
        lines += [f"  - model: {FAMILY / role}", "    parameters:", "      weight:"]
        lines += [f"        - {{filter: norm, value: {(low + high) / 2:g}}}"]
        lines += [f"        - {{filter: layers.{i}., value: {low if i < LOWER else high:g}}}" for i in range(LAYERS)]
        lines += [f"        - value: {(low + high) / 2:g}"]
    return "\n".join(lines) + "\n"


def difference(live: dict[str, Any], files: dict[str, Any]) -> float:
    """Between the merges in memory and the files: mergekit rounds otherwise."""
    abilities = {point["alpha"]: point["values"]["abilities"] for point in live["points"] if point["kind"] == "uniform"}
    measured = [point["measured"]["abilities"]["value"] for point in files["points"]]
    return max(abs(abilities[r] - value) for r, value in zip(UNIFORM, measured, strict=False))


if __name__ == "__main__":
    main()
