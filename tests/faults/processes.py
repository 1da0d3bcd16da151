"""Real processes of `amatax merge` that can be watched, stopped and killed, and a model large enough to be caught at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

from tests.forked import Job

SHARDS = 24
MERGE = ("merge", "recipe.yaml", "out")


def pause_after(job: Job, folder: Path, shards: int) -> None:
    """Stop a process (SIGSTOP) as soon as it has finished so many shards in folder, in the middle of the next."""
    while finished(folder) < shards:
        assert job.state() != "Z", f"it was faster than this loop, or failed\n{job.err.read_text()}"
        time.sleep(0.0005)
    job.send(signal.SIGSTOP)
    job.stopped()


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


def without_recipe(files: dict[str, bytes]) -> dict[str, bytes]:
    """Everything but the two files that name the input folders."""
    return {name: data for name, data in files.items() if not name.startswith("amatax_")}
