"""How much memory a merge will take, said before it starts."""

from __future__ import annotations

import math
import os

from amatax.methods import bind, method_needs, simplest
from amatax.methods._compiled import MANY
from amatax.planning.plan import Plan
from amatax.planning.tensors import PlannedTensor

CPU_ELEMENTS = 1 << 18  # of a chunk, read and written at once: smaller ones cost more calls (benchmarks/RESULTS.md)
CPU_BLOCK = 1 << 17  # merged at once: what a core's own cache holds
MOST_THREADS = 8  # by default; more seldom help, and each has buffers of its own
PROCESS = 230 << 20  # Python with torch
COMPILER = 140 << 20  # numba, of methods with loops
PER_TENSOR = 4000  # of plan and record


def default_threads() -> int:
    """The cores this process may use, up to a point; torchrun's processes of one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(cores // max(1, int(here) if here.isdecimal() else 1), MOST_THREADS))


def expected_memory(plan: Plan, threads: int | None = None) -> int:
    """Resident bytes on the CPU, about: each worker has raw bytes of a chunk and numbers of a block, for every model."""
    method, options = simplest(plan.recipe.merge.method, plan.recipe.merge.options)
    roles = len(method_needs(method))
    large = any(math.prod(tensor.shape) >= MANY for tensor in plan.tensors.values())
    process = PROCESS + COMPILER * (large and bind(method, options).widens)
    width = max(
        (e.nbytes // max(1, math.prod(e.shape)) for t in plan.tensors.values() for e in t.sources.values()),
        default=2,
    )
    worker = CPU_ELEMENTS * width * (roles + 1) + CPU_BLOCK * 8 * (roles + 1)
    adapters = max((_adapter_bytes(tensor) for tensor in plan.tensors.values()), default=0)
    return process + (threads or default_threads()) * (worker + adapters) + PER_TENSOR * len(plan.tensors)


def _adapter_bytes(tensor: PlannedTensor) -> int:
    """What a worker holds of a tensor's adapters: their factors as numbers, and a tile of their product."""
    deltas = [entry.delta for entry in tensor.sources.values() if entry.delta is not None]
    return sum(8 * (CPU_BLOCK + sum(math.prod(e.shape) for e in delta.entries)) for delta in deltas)
