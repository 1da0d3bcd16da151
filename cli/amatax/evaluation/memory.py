"""What a live model needs of memory, told before anything is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from amatax.checkpoints.dtypes import torch_dtype
from amatax.errors import AmataxError
from amatax.planning.plan import Plan

if TYPE_CHECKING:
    import torch


class LiveBytes(NamedTuple):
    """Bytes of weights.

    Attributes:
        held: the models that are merged, as they are on disk; what several share counts once.
        live: the merged model.
        beside: other models.
    """

    held: int
    live: int
    beside: int = 0


def live_bytes(plan: Plan, dtype: torch.dtype | None = None) -> LiveBytes:
    """What a live model of a plan holds, whatever the ratios, in the output's dtype or another; activations come on top."""
    entries = [e for t in plan.tensors.values() for e in (*t.sources.values(), *t.others.values())]
    held = {(e.path, e.offset): e.nbytes for e in sorted(entries, key=lambda e: e.nbytes)}
    live = sum(math.prod(t.shape) * (dtype or torch_dtype(t.dtype)).itemsize for t in plan.tensors.values())
    return LiveBytes(sum(held.values()), live)


def check_live_memory(plan: Plan, device: torch.device, dtype: torch.dtype | None = None, beside: int = 0) -> None:
    """Before anything is loaded: the models, the merge and what else will be loaded against what there is.

    Raises:
        AmataxError: if they do not fit.
    """
    from amatax.fitting.estimate import free_bytes

    held, live, _ = live_bytes(plan, dtype)
    free = free_bytes(device)
    if free is None or held + live + beside <= free:
        return
    raise AmataxError(
        f"the models and their merge need about {(held + live + beside) / 1e9:.1f} GB on {device} (the models {held / 1e9:.1f}, the "
        f"merge {live / 1e9:.1f}), and {free / 1e9:.1f} GB are free",
        "take another --device, or a machine with more memory; or merge point by point with `amatax merge` and evaluate the "
        "folders, which takes one model at a time",
    )
