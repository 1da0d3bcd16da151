"""Real processes of `amatax` without the seconds that its imports take: forks of one that has made them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import Run

SERVER = Path(__file__).resolve().with_name("warm.py")


class Warm:
    """Starts processes through warm.py, which has imported these modules."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER), *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, cwd: Path, *args: str | Path, die_at: int = 0, stop_at: int = 0, events: Path | None = None) -> Job:
        self.count += 1
        out, err = (self.folder / f"{name}-{self.count}" for name in ("out", "err"))
        answer = self.ask(
            args=[str(a) for a in args],
            cwd=str(cwd),
            out=str(out),
            err=str(err),
            die_at=die_at,
            stop_at=stop_at,
            events=str(events) if events else None,
        )
        return Job(self, answer["pid"], out, err)

    def run(self, cwd: Path, *args: str | Path, die_at: int = 0, events: Path | None = None) -> Run:
        return self.start(cwd, *args, die_at=die_at, events=events).wait()

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()


class Job:
    """A process at work."""

    def __init__(self, warm: Warm, pid: int, out: Path, err: Path) -> None:
        self.warm, self.pid, self.out, self.err = warm, pid, out, err

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Run:
        status = self.warm.ask(wait=self.pid)["status"]
        return Run(status, self.out.read_text(), self.err.read_text())

    def stopped(self) -> None:
        """Wait until it has stopped itself (`stop_at`)."""
        deadline = time.monotonic() + 30
        while self.state() != "T":
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.002)

    def state(self) -> str:
        """R, S, T (stopped), Z (ended) ..."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]
