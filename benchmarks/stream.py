"""A merge of Hub models: downloaded first, or streamed, from a Hub on loopback; wall time, peak memory, peak disk.

The Hub is the tests' stand-in, in this process; each merge is a process of its own with an empty cache, in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS: dict[str, list[str]] = {
    "download, then merge": ["OUT"],
    "--stream": ["OUT", "--stream"],
    "download, merge, push": ["OUT", "--push", "acme/plain-ROUND"],
    "--stream --push": ["OUT", "--stream", "--push", "acme/streamed-ROUND"],
}


def main() -> None:
    """Measure and print."""
    from tests.hub import running_hub

    from benchmarks.siblings import llama_config, llama_shape, write_siblings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--xet", action="store_true", help="leave hf_xet on; the stand-in serves plain files all the same"
    )
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(exist_ok=True)
    config = llama_config(22)
    write_siblings(work / "M", llama_shape(config), 3, config)
    home, out = work / "stream-home", work / "stream-out"
    (work / "stream.yaml").write_text(
        "models: {sft: acme/sft, rlhf: acme/rlhf}\nmerge: {ratios: [0.7, 0.4, 0.1]}\noutput: {max_shard_size: 800MB}\n"
    )
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    with running_hub() as hub:
        hub.tokens = {"hf_bench": {"name": "acme", "role": "write"}}
        hub.repos |= {f"acme/{role}": {"main": work / "M" / role} for role in ("sft", "rlhf")}
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_bench",
        }
        env |= {"HF_HUB_DISABLE_XET": "0" if args.xet else "1", "PYTHONPATH": str(ROOT / "cli")}
        for i in range(args.rounds):
            for way, options in WAYS.items():
                for folder in (home, out, out.with_name("stream-out.unfinished")):
                    shutil.rmtree(folder, ignore_errors=True)
                wishes = [str(out) if o == "OUT" else o.replace("ROUND", str(i)) for o in options]
                command = [sys.executable, "-m", "amatax", "merge", str(work / "stream.yaml"), *wishes, "--quiet"]
                found[way].append(measured(command, env, [home, out, out.with_name("stream-out.unfinished")]))
    for folder in (home, out):
        shutil.rmtree(folder, ignore_errors=True)
    print("| way | wall s, median (best) | peak RSS MB | peak disk GB |\n|---|---|---|---|")
    wall = {way: statistics.median(run[0] for run in runs) for way, runs in found.items()}
    for way, runs in found.items():
        best, rss, disk = min(r[0] for r in runs), max(r[1] for r in runs), max(r[2] for r in runs)
        print(f"| {way} | {wall[way]:.1f} ({best:.1f}) | {rss:.0f} | {disk:.2f} |")
    print(f"\nstream / download: {wall['--stream'] / wall['download, then merge']:.2f} (promise 0.8)")
    print(f"both with a push: {wall['--stream --push'] / wall['download, merge, push']:.2f}")


def measured(command: list[str], env: dict[str, str], folders: list[Path]) -> tuple[float, float, float]:
    """(wall seconds, peak RSS in MB, peak GB of the folders) of a process."""
    most = 0
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env)
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, sum(used(folder) for folder in folders))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command} failed")
    return seconds, usage.ru_maxrss / 1e3, max(most, sum(used(folder) for folder in folders)) / 1e9


def used(folder: Path) -> int:
    """Bytes on the disk, links not followed."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_blocks * 512
        except OSError:  # renamed meanwhile
            continue
    return total


if __name__ == "__main__":
    main()
