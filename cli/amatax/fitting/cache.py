"""What a model remembers of the tokens before, while it answers: written into memory that is there for all of them.

transformers' own (`DynamicLayer`) copies everything for every token: of a small model, most of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def cache_for(model: Any, length: int) -> DynamicCache | None:
    """A cache for so many tokens; None for a model with layers that remember otherwise: then `generate` takes its own."""
    if "mamba" in type(model).__name__.lower() or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_Layer(length) for _ in cache.layers]
    return cache


class _Layer(DynamicLayer):
    """Keys and values (rows, heads, tokens, width) of one layer."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self._rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; all of them until now."""
        states, begin = (key_states, value_states), self.get_seq_length()
        if not begin:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rooms = [one.new_empty((*one.shape[:-2], self._length, one.shape[-1])) for one in states]
        end = begin + key_states.shape[-2]
        for room, one in zip(self._rooms, states, strict=True):
            room[..., begin:end, :] = one
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values
