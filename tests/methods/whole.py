"""A method over a whole tensor, in blocks, as the streaming code runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from amatax.methods import Chunk, Chunks, kernel, method_needs, method_prepare, wants_chunk


def merge(
    method: str,
    base: torch.Tensor,
    sft: torch.Tensor,
    rlhf: torch.Tensor,
    ratio: float,
    *,
    block: int = 1 << 17,
    name: str = "layers.0.weight",
    **options: Any,
) -> torch.Tensor:
    """The merged tensor, float32 or float64 as the models are; none of these is written to."""
    models = {role: t for role, t in (("base", base), ("sft", sft), ("rlhf", rlhf)) if role in method_needs(method)}

    def through(every: int, first: int) -> Iterator[dict[str, torch.Tensor]]:
        for begin in range(first, len(sft), block):
            yield {role: tensor[begin : begin + block : every].clone() for role, tensor in models.items()}

    chunks = Chunks(len(sft), through)

    function, prepare = kernel(method), method_prepare(method, options)
    given: dict[str, Any] = {} if prepare is None else {"stats": prepare(chunks, ratio)}
    pieces = []
    for i, chunk in enumerate(chunks()):
        if wants_chunk(function):
            given["chunk"] = Chunk(name, i * block)
        pieces.append(function(chunk, ratio, chunk["rlhf"], **given, **options).clone())
    return torch.cat(pieces)
