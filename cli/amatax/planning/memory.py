"""How much memory a merge will take, said before it starts."""

from __future__ import annotations

import os

from amatax.methods import method_needs
from amatax.planning.plan import Plan

CPU_ELEMENTS = 1 << 18  # of a chunk: smaller ones cost more calls, larger ones miss the caches (benchmarks/RESULTS.md)
PROCESS = 230 << 20  # Python with torch
PER_TENSOR = 4000  # of plan and record


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def expected_memory(plan: Plan, threads: int | None = None) -> int:
    """Resident bytes on the CPU, about: each worker has raw and wide buffers of a chunk for every model and the result."""
    roles = len(method_needs(plan.recipe.merge.method))
    worker = CPU_ELEMENTS * 8 * (2 * roles + 3)
    return PROCESS + (threads or default_threads()) * worker + PER_TENSOR * len(plan.tensors)
