"""Who this process is among those that torchrun has started: what its environment says."""

from __future__ import annotations

import os


def rank_and_world() -> tuple[int, int]:
    """(number of this process, how many there are), from torchrun's environment."""
    world = _number("WORLD_SIZE", 1)
    return (_number("RANK", 0), world) if world > 1 else (0, 1)


def local_rank() -> int:
    """The number of this process on its machine."""
    return _number("LOCAL_RANK", rank_and_world()[0])


def own_device(device: str) -> str:
    """Of several GPUs of a machine each process takes its own."""
    if rank_and_world()[1] > 1 and device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{local_rank()}"
    return device


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default
