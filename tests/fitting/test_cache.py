"""The cache of generation: what transformers' own gives, in memory that is taken for many at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from amatax.fitting.cache import cache_for

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 48}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=4),
    "qwen3, grouped heads": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=64, n_positions=64),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
}
OTHERS: dict[str, Any] = {
    "a sliding window": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4),
    "mamba": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4),
    "none at all": lambda: transformers.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=64),
    "mixed": lambda: transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=4),
}


def answer(model: Any, cache: Any) -> torch.Tensor:
    """Every step's logits (steps, rows, vocabulary), of prompts of several lengths, padded on the left."""
    ids = torch.randint(2, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :7] = 0, 0
    chosen = {"past_key_values": cache} if cache is not None else {}
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        found = model.generate(ids, **asked, **chosen, return_dict_in_generate=True, output_logits=True)
    return torch.stack(found.logits)


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("grows", [4, 64])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_numbers(monkeypatch: pytest.MonkeyPatch, name: str, grows: int) -> None:
    """In memory for all that may come, and no more."""
    monkeypatch.setattr("amatax.fitting.cache.GROWS", grows)
    model = model_of(CONFIGS[name]())
    cache = cache_for(model, 9 + 12)
    assert cache is not None
    assert torch.equal(answer(model, cache), answer(model, None))
    rooms = {layer.keys.untyped_storage().nbytes() for layer in cache.layers}
    width = 16 if "qwen3" in name else 8
    assert rooms == {3 * (2 if "qwen3" in name else 4) * 21 * width * 4}  # rows, heads, tokens, width, float32
    assert cache.get_seq_length() == 9 + 12 - 1  # the last token is not asked on


@pytest.mark.parametrize("name", OTHERS)
def test_other_memories_are_left_to_transformers(name: str) -> None:
    assert cache_for(model_of(OTHERS[name]()), 21) is None


def test_a_model_that_makes_its_own_cache_keeps_it() -> None:
    class Own(transformers.LlamaForCausalLM):
        def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            return super()._prepare_cache_for_generation(*args, **kwargs)

    assert cache_for(Own(CONFIGS["llama"]()), 21) is None


def test_memory_is_taken_as_it_is_needed() -> None:
    """A long limit costs nothing while answers are short; a long answer is copied a few times, not for every token."""
    model = model_of(CONFIGS["llama"]())
    cache = cache_for(model, 4000)
    assert cache is not None
    rooms = []
    for end in range(1, 1001):
        one = torch.full((1, 4, 1, 8), float(end))
        keys, values = cache.layers[0].update(one, -one)
        assert keys.shape == (1, 4, end, 8)
        rooms.append(keys.untyped_storage().nbytes() // (4 * 4 * 8))
    assert torch.equal(keys[0, 0, :, 0], torch.arange(1.0, 1001.0))
    assert torch.equal(values, -keys)
    assert rooms[0] == 65
    assert rooms[-1] <= 1250
    assert len(set(rooms)) < 13
