"""Many processes by torchrun: each takes its share of the batches, and holds both models whole, or a part of them (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

PATIENCE = timedelta(days=7)  # the first process may sample responses while the others wait


def rank_and_world() -> tuple[int, int]:
    """(number of this process, how many there are)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined() -> Iterator[None]:
    """The processes that torchrun has started, together; nothing for one process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """Of several GPUs each process takes its own."""
    if rank_and_world()[1] > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def from_first(value: Any) -> Any:
    """What the first process has, for all of them; it must be picklable."""
    if rank_and_world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_first() -> None:
    """Go on when every process has come here."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def shard(model: nn.Module, layers: int, device: torch.device) -> None:
    """Spread a model's parameters over the processes; a layer's are gathered while it runs (torch's fully_shard).

    Args:
        model: on the CPU.
        layers: how many its decoder has; every list of so many modules is gathered module by module.
        device: where this process computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (rank_and_world()[1],))
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
