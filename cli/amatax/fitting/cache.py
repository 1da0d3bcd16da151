"""What a model remembers of the tokens before, while it answers: written into memory that is taken for many tokens at a time.

transformers' own (`DynamicLayer`) copies everything for every token (benchmarks/RESULTS.md has what that takes).
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

GROWS = 64  # tokens that it makes room for, or a quarter of those that are there, if that is more


def cache_for(model: Any, length: int) -> DynamicCache | None:
    """A cache for so many tokens at most; None for a model with layers that remember otherwise: then `generate` takes its own."""
    if not (model._supports_default_dynamic_cache() and _takes_one(model)):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_Layer(length) for _ in cache.layers]
    return cache


def _takes_one(model: Any) -> bool:
    """Whether `generate` lets a cache through (as its `_validate_model_kwargs` does: not for GPT-1, XLM), and makes no special one."""
    own = getattr(type(model), "_prepare_cache_for_generation", None)
    taken = set(signature(model.prepare_inputs_for_generation).parameters)
    if taken & {"kwargs", "model_kwargs"}:
        taken |= set(signature(model.forward).parameters)
    return "past_key_values" in taken and own is GenerationMixin._prepare_cache_for_generation


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
            self._rooms = [one[..., :0, :] for one in states]
        end = begin + key_states.shape[-2]
        for i, one in enumerate(states):
            if end > self._rooms[i].shape[-2]:
                tokens = min(end + max(GROWS, end // 4), max(end, self._length))
                room = one.new_empty((*one.shape[:-2], tokens, one.shape[-1]))
                room[..., :begin, :] = self._rooms[i][..., :begin, :]
                self._rooms[i] = room
            self._rooms[i][..., begin:end, :] = one
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values
