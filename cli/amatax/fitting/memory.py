"""Memory: an error that says what to change when it ran out, and an estimate before it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amatax.errors import AmataxError

LAYER_WIDTHS, LAYER_INNER = (
    12,
    4,
)  # numbers a token that backward keeps of a layer: so many widths, and inner widths of its MLP
LOGITS = 3  # copies of a response token's logits, in float32


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


def activation_bytes(config: Any, tokens: int, responses: int, compute: torch.dtype, *, checkpointing: bool) -> int:
    """About what one batch's forward and backward hold, models left out.

    Args:
        config: of transformers.
        tokens: of the batch, padding included.
        responses: of these, the tokens of responses.
        compute: dtype of the activations.
        checkpointing: only each layer's input is kept, and one layer's activations at a time.
    """
    text = config.get_text_config()
    width, layers = getattr(text, "hidden_size", 0) or 0, getattr(text, "num_hidden_layers", 0) or 0
    inner = getattr(text, "intermediate_size", 0) or 4 * width
    a_layer = LAYER_WIDTHS * width + LAYER_INNER * inner
    kept = layers * width + a_layer if checkpointing else layers * a_layer
    return tokens * kept * compute.itemsize + LOGITS * 4 * responses * (getattr(text, "vocab_size", 0) or 0)


def free_bytes(device: torch.device) -> int | None:
    """What a device has left; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        found.append(int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024)
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)
