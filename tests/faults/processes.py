"""Real processes of `amatax merge` that can be watched, stopped and killed, and a model large enough to be caught at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.breaking import Answer

HERE = Path(__file__).resolve().parent
SHARDS = 24


class Warm:
    """Starts processes through warm.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, cwd: Path, *args: str | Path, die_at: int = 0, stop_at: int = 0, events: Path | None = None) -> Job:
        self.count += 1
        err = self.folder / f"err-{self.count}"
        answer = self.ask(
            args=[str(a) for a in args],
            cwd=str(cwd),
            err=str(err),
            die_at=die_at,
            stop_at=stop_at,
            events=str(events) if events else None,
        )
        return Job(self, answer["pid"], err)

    def run(self, cwd: Path, *args: str | Path, die_at: int = 0, events: Path | None = None) -> Answer:
        return self.start(cwd, *args, die_at=die_at, events=events).wait()

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()


class Job:
    """A process at work."""

    def __init__(self, warm: Warm, pid: int, err: Path) -> None:
        self.warm, self.pid, self.err = warm, pid, err

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Answer:
        status = self.warm.ask(wait=self.pid)["status"]
        text = self.err.read_text()
        return Answer(status, text, text)

    def stopped(self) -> None:
        """Wait until it has stopped itself (`stop_at`)."""
        deadline = time.monotonic() + 30
        while self.state() != "T":
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.002)

    def pause_after(self, folder: Path, shards: int) -> None:
        """Stop the process (SIGSTOP) as soon as it has finished so many shards in folder, in the middle of the next."""
        while finished(folder) < shards:
            assert self.state() != "Z", f"it was faster than this loop, or failed\n{self.err.read_text()}"
            time.sleep(0.0005)
        self.send(signal.SIGSTOP)
        self.stopped()

    def state(self) -> str:
        """R, S, T (stopped), Z (ended) ..."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]


def finished(folder: Path) -> int:
    """Shards under their final names."""
    try:
        return sum(path.suffix == ".safetensors" for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and mtime of every finished shard: what changes when it is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors")}


def save_large_siblings(folder: Path) -> None:
    """Twelve layers of 2 MB matrices, 50 MB each: merged in SHARDS shards."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    for role in ("sft", "rlhf"):
        (folder / role).mkdir(parents=True)
        tensors = {}
        for layer in range(SHARDS // 2):
            for part in ("self_attn.q_proj", "mlp.up_proj"):
                tensors[f"model.layers.{layer}.{part}.weight"] = torch.randn(1024, 512, generator=generator)
        save_file(tensors, folder / role / "model.safetensors", {"format": "pt"})
        (folder / role / "config.json").write_text(json.dumps({"num_hidden_layers": SHARDS // 2, "dtype": "float32"}))
    write_large_recipe(folder)


def write_large_recipe(folder: Path, ratios: str = "[0.7, 0.4, 0.1]") -> None:
    (folder / "recipe.yaml").write_text(
        f"models: {{sft: ./sft, rlhf: ./rlhf}}\nmerge: {{ratios: {ratios}}}\noutput: {{max_shard_size: 2100KB}}\n"
    )


def hard_linked(family: Path, target: Path) -> Path:
    """The large siblings under another folder, without copying their bytes."""
    target.mkdir(exist_ok=True)
    for role in ("sft", "rlhf"):
        shutil.copytree(family / role, target / role, copy_function=os.link)
    write_large_recipe(target)
    return target
