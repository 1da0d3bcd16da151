"""Out of memory, as an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amatax.errors import AmataxError


@contextmanager
def memory_hint(what: str, hint: str) -> Iterator[None]:
    """Out of memory as an AmataxError that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise AmataxError(f"out of memory {what}", hint) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says; torch has no class of its own for it on the CPU."""
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def sampling_hint(batch_size: int, device: torch.device) -> tuple[str, str]:
    """memory_hint's words for a job that takes so many samples at a time."""
    smaller = f"--batch-size {max(1, batch_size // 2)}" if batch_size > 1 else "another --device"
    return (
        f"on {device} with {batch_size} samples at a time",
        f"try {smaller}: the same command continues with what is done",
    )
