"""Many processes by torchrun: each takes its share of the batches, and holds both models whole, or a part of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from amatax.streaming import joining
from amatax.streaming.processes import rank_and_world

GOODBYE = 5.0  # seconds from a process's last word to what others hear of it, at most
PATIENCE = timedelta(days=7)  # the first process may sample responses while the others wait


@contextmanager
def joined() -> Iterator[None]:
    """The processes that torchrun has started, together; nothing for one process alone.

    Raises:
        AmataxError: what has kept another one from coming here.
    """
    if rank_and_world()[1] < 2 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with joining.joined() as ranks:
        ranks.each(lambda: None)  # torch would wait for ever for one that has failed
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield
        except RuntimeError:  # of a process that waited for one that has failed; that one says more
            ranks.wait_gone(GOODBYE)
            raise
        finally:
            dist.destroy_process_group()


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
