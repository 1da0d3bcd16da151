"""Real processes of `amatax` without the seconds that its imports take: forks of one that has made them."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().with_name("warm.py")
MERGING = (
    *(f"amatax.{part}" for part in ("api", "commands", "streaming.stream")),
    *(f"amatax.writing.{part}" for part in ("record", "verification", "writer")),
    "matplotlib.figure",  # of the picture that a push draws
    "matplotlib.backends.backend_agg",
)
FITTING = (
    *MERGING,
    *(f"amatax.fitting.{part}" for part in ("job", "fit", "generation")),
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "scipy.optimize",
    "tokenizers",
)
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "LD_", "TORCH_")  # variables that a fork is too late for


@dataclass
class Run:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@cache
def forks(*modules: str) -> Warm:
    """The process that has imported these modules, one for all tests of this process."""
    return Warm(*modules)


class Warm:
    """Starts processes through warm.py, which has imported these modules."""

    def __init__(self, *modules: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="amatax-warm-")
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER), *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.close)

    def ask(self, **request: Any) -> Any:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def python(
        self,
        cwd: Path,
        *args: str | Path,
        env: dict[str, str] | None = None,
        die_at: int = 0,
        stop_at: int = 0,
        events: Path | None = None,
    ) -> Job:
        """`python ARGS`: a script, or `-m amatax`; `env` stands beside this process's own."""
        self.count += 1
        out, err = (Path(self.folder.name) / f"{name}-{self.count}" for name in ("out", "err"))
        answer = self.ask(
            args=[str(a) for a in args],
            env={**os.environ, **(env or {})},
            cwd=str(cwd),
            out=str(out),
            err=str(err),
            die_at=die_at,
            stop_at=stop_at,
            events=str(events) if events else None,
        )
        return Job(self, answer["pid"], out, err)

    def start(self, cwd: Path, *args: str | Path, **wishes: Any) -> Job:
        """`amatax ARGS`."""
        return self.python(cwd, "-m", "amatax", *args, **wishes)

    def run(self, cwd: Path, *args: str | Path, **wishes: Any) -> Run:
        return self.start(cwd, *args, **wishes).wait()

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

    def ended(self) -> bool:
        return self.state() == "Z"

    def state(self) -> str:
        """R, S, T (stopped), Z (ended) ..."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]
