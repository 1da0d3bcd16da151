"""`make bench`: amatax, mergekit and this machine's floor on the same siblings, in turn, in one run; a table of medians.

The siblings (three of 2.2 GB, a quarter of that, and 50,000 small tensors) are made under .bench/ once. mergekit goes into a
virtual environment of its own there; without it its rows are left out.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Cost, measure

ROOT = Path(__file__).resolve().parents[1]
MERGEKIT = "mergekit==0.1.5"
RATIOS = "[0.7, 0.4, 0.1]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-mergekit", action="store_true")
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(exist_ok=True)
    # a process of its own: a child's peak memory, as the kernel counts it, begins with that of the process it was forked from
    subprocess.run([sys.executable, "-m", "benchmarks.siblings", work], check=True, cwd=ROOT)
    for name in ("M", "Q", "S5000", "S50000"):
        recipe(work, name)

    amatax = [sys.executable, "-m", "amatax", "merge"]
    jobs: dict[str, list[str | Path]] = {
        "cp -r of one sibling": ["cp", "-r", work / "M" / "sft", work / "out"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "amatax merge M": [*amatax, work / "M.yaml", work / "out", "-q"],
        "amatax merge M, 1 thread": [*amatax, work / "M.yaml", work / "out", "-q", "--threads", "1"],
        "amatax merge Q (a quarter)": [*amatax, work / "Q.yaml", work / "out", "-q"],
        "amatax merge, 5,000 small tensors": [*amatax, work / "S5000.yaml", work / "out", "-q"],
        "amatax merge, 50,000 small tensors": [*amatax, work / "S50000.yaml", work / "out", "-q"],
    }
    if not args.no_mergekit:
        peer: list[str | Path] = [mergekit(work), work / "mergekit.yaml", work / "out"]
        jobs["mergekit linear M, default flags"] = peer
        jobs["mergekit linear M, best flags"] = [*peer, "--lazy-unpickle", "--async-write", "--no-copy-tokenizer"]
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    for i in range(args.rounds + 1):
        for name, command in jobs.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            cost = measure(command, work, env={"PYTHONPATH": str(ROOT / "cli")})
            if i:  # the first round warms the page cache
                costs[name].append(cost)
    shutil.rmtree(work / "out", ignore_errors=True)
    report(costs)


def recipe(work: Path, name: str) -> None:
    """The recipe over a set of siblings, and mergekit's configuration of the same merge."""
    models = f"models: {{sft: ./{name}/sft, rlhf: ./{name}/rlhf}}\n"
    (work / f"{name}.yaml").write_text(f"{models}merge: {{ratios: {RATIOS}}}\noutput: {{max_shard_size: 1GB}}\n")
    if name == "M":
        text = "merge_method: linear\ndtype: bfloat16\nmodels:\n"
        for role, weight in (("sft", 0.6), ("rlhf", 0.4)):
            text += f"  - model: {work / name / role}\n    parameters: {{weight: {weight}}}\n"
        (work / "mergekit.yaml").write_text(text)


def mergekit(work: Path) -> Path:
    """mergekit-yaml in a virtual environment of its own."""
    venv = work / "mergekit-venv"
    if not (venv / "bin" / "mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip: list[str | Path] = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, MERGEKIT], check=True)
    return venv / "bin" / "mergekit-yaml"


def report(costs: dict[str, list[Cost]]) -> None:
    """Medians, ratios to the floor, and the lines that the project promises."""

    def wall(name: str) -> float:
        return statistics.median(c.wall for c in costs[name])

    def peak(name: str) -> float:
        return max(c.peak for c in costs[name])

    floor, torch = wall("cp -r of one sibling"), wall("python -c 'import torch'")
    print(f"\n{platform.platform()}, {len(costs['amatax merge M'])} rounds, medians (memory: maxima)\n")
    print("| | wall s | CPU s | peak RSS MB | wall / cp -r |\n|---|---|---|---|---|")
    for name, runs in costs.items():
        cpu = statistics.median(c.cpu for c in runs)
        print(f"| {name} | {wall(name):.2f} | {cpu:.2f} | {peak(name):.0f} | {wall(name) / floor:.2f} |")
    merge = wall("amatax merge M")
    paired = [
        (m.wall - t.wall) / c.wall
        for m, t, c in zip(
            costs["amatax merge M"], costs["python -c 'import torch'"], costs["cp -r of one sibling"], strict=True
        )
    ]
    per_tensor = (wall("amatax merge, 50,000 small tensors") - torch) / 50_000
    small = (wall("amatax merge, 5,000 small tensors") - torch) / 5_000
    peers = [name for name in costs if name.startswith("mergekit")]
    print("\n| promise | measured |\n|---|---|")
    print(
        f"| (amatax - import torch) / cp -r at most 3 | {(merge - torch) / floor:.2f} (paired: {min(paired):.2f} to {max(paired):.2f}) |"
    )
    if peers:
        best = min(wall(name) for name in peers)
        print(f"| amatax / mergekit (its best) at most 0.2 | {merge / best:.3f} |")
    print(f"| peak RSS at most 350 MB | {peak('amatax merge M'):.0f} MB |")
    ratio = peak("amatax merge M") / peak("amatax merge Q (a quarter)")
    print(f"| within 10 % the same for a quarter of the size | {ratio:.3f} |")
    print(f"| at most 0.2 ms a tensor | {per_tensor * 1e3:.3f} ms at 50,000 tensors, {small * 1e3:.3f} ms at 5,000 |")


if __name__ == "__main__":
    main()
