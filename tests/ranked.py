"""Several processes of `amatax`: by torchrun, as users start them, or one by one, which is faster and shows each one's words."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.forked import MERGING, Run, forks

# what a rank runs instead of `python -m amatax`: `change` may alter the merge of this rank, by its number
SCRIPT = """
import os, signal, sys, time
import amatax.streaming.ranks as ranks
import amatax.writing.workplace as workplace
from amatax.__main__ import main

rank = int(os.environ["RANK"])
finish = workplace.Workplace.finish_shard
log = os.open("finished.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
done = 0

def finished():
    pass

def counted(self, partial, entry):
    global done
    finish(self, partial, entry)
    done += 1
    os.write(log, f"{rank} {entry['file']}\\n".encode())
    finished()

workplace.Workplace.finish_shard = counted
CHANGE
main()
"""


def script(folder: Path, change: str = "") -> Path:
    """A script for every rank, which also writes down which rank finishes what."""
    path = folder / "rank.py"
    path.write_text(SCRIPT.replace("CHANGE", change))
    return path


def who_finished(folder: Path) -> dict[str, int]:
    """Shard -> rank, of the scripts' runs since the last look; no shard was finished twice."""
    log = folder / "finished.log"
    lines = [line.split() for line in log.read_text().splitlines()]
    log.unlink()
    assert len({file for _, file in lines}) == len(lines), lines
    return {file: int(rank) for rank, file in lines}


def torchrun_command(world: int, *arguments: str | Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--standalone"]
    return [*launcher, *map(str, arguments)]


def torchrun(folder: Path, world: int, *arguments: str | Path, env: dict[str, str] | None = None) -> Run:
    done = subprocess.run(
        torchrun_command(world, *arguments),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def each_rank(
    folder: Path,
    world: int,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    cwds: list[Path] | None = None,
    imported: tuple[str, ...] = MERGING,
) -> list[Run]:
    """`python ARGUMENTS` once for each rank, with the environment that torchrun gives; the first rank has the store.

    They are forks of a process that has `imported` these modules.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = []
    for rank in range(world):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        environment = {**{k: str(v) for k, v in given.items()}, "MASTER_ADDR": "127.0.0.1", **(env or {})}
        jobs.append(forks(*imported).python(cwds[rank] if cwds else folder, *arguments, env=environment))
    return [job.wait() for job in jobs]
