"""What a fit will need of memory, told before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from amatax.errors import AmataxError
from amatax.fitting.likelihood import most_tokens
from amatax.fitting.options import FitOptions
from amatax.planning.plan import Plan
from amatax.streaming.processes import own_device, rank_and_world
from amatax.streaming.stream import pick_device

LAYER_WIDTHS, LAYER_INNER = (
    12,
    4,
)  # numbers a token that backward keeps of a layer: so many widths, and inner widths of its MLP
LOGITS = 3  # copies of a token's logits, in float32
LOGITS_KEPT = 2  # and of a divergence's: SFT's, and what each word adds


def check_memory(plan: Plan, longest: int, options: FitOptions, *, divergence: bool = False) -> None:
    """Before anything is loaded: both models and the activations of a batch against what there is.

    Args:
        plan: of the merge.
        longest: tokens of the longest sample.
        options: of the fit.
        divergence: it is measured as well.

    Raises:
        AmataxError: if they do not fit.
    """
    device = pick_device(own_device(options.device))
    config = transformers.AutoConfig.from_pretrained(
        plan.checkpoints["sft"].folder, trust_remote_code=options.trust_remote_code
    )
    tokens = max(longest, min(options.batch_tokens, most_tokens(config)))
    models = model_bytes(plan)
    if options.shard:
        models //= rank_and_world()[1]
    compute = getattr(torch, options.compute or ("float32" if device.type == "cpu" else "bfloat16"))
    batch = activation_bytes(config, tokens, compute, checkpointing=options.checkpointing, divergence=divergence)
    free = free_bytes(device)
    if free is None or models + batch <= free:
        return
    if models > free:
        way = "spread the models with torchrun and --shard"
    else:
        way = f"try --checkpointing, or --batch-tokens {max(1, tokens // 4)}"
    raise AmataxError(
        f"the fit needs about {(models + batch) / 1e9:.1f} GB on {device} (both models {models / 1e9:.1f}, a batch of "
        f"{tokens} tokens {batch / 1e9:.1f}), and {free / 1e9:.1f} GB are free",
        f"{way}, or take another --device",
    )


def model_bytes(plan: Plan) -> int:
    """What both models take; an RLHF model that is SFT's with an adapter takes the adapter beside it."""
    sft, rlhf = plan.checkpoints["sft"], plan.checkpoints["rlhf"]
    if rlhf.adapter is not None and sft.adapter is None and sft.files == rlhf.files:
        return sft.nbytes + rlhf.adapter.nbytes
    return sft.nbytes + rlhf.nbytes


def activation_bytes(
    config: Any, tokens: int, compute: torch.dtype, *, checkpointing: bool, divergence: bool = False
) -> int:
    """About what one batch's forward and backward hold, models left out.

    Args:
        config: of transformers.
        tokens: of the batch, padding included.
        compute: dtype of the activations.
        checkpointing: only each layer's input is kept, and one layer's activations at a time.
        divergence: of the KL from SFT, instead of the likelihood.
    """
    text = config.get_text_config()
    width, layers = getattr(text, "hidden_size", 0) or 0, getattr(text, "num_hidden_layers", 0) or 0
    inner = getattr(text, "intermediate_size", 0) or 4 * width
    a_layer = LAYER_WIDTHS * width + LAYER_INNER * inner
    kept = layers * width + a_layer if checkpointing else layers * a_layer
    copies = LOGITS + LOGITS_KEPT * divergence
    return tokens * kept * compute.itemsize + copies * 4 * tokens * (getattr(text, "vocab_size", 0) or 0)


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
