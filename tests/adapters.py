"""Real adapters, made with PEFT on tiny models, and what PEFT's own merge makes of them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import tiny_llama


def tiny_gpt2(**changes: Any) -> Any:
    """Three layers of GPT-2, whose weights are stored inputs first."""
    from transformers import GPT2Config

    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 96, "n_positions": 32}
    return GPT2Config(architectures=["GPT2LMHeadModel"], **{**sizes, **changes})


def small_llama(**changes: Any) -> Any:
    """Two layers of Llama, no power of two in its sizes, so that chunks and tiles end in the middle of rows."""
    sizes = {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "vocab_size": 99}
    return tiny_llama(**{**sizes, **changes})


def save_model(folder: Path, config: Any, dtype: str = "float32", seed: int = 0) -> Any:
    """A model of random numbers, biases and norms among them, saved to `folder`."""
    import transformers

    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    model = getattr(transformers, config.architectures[0])(config)
    randomise(model.named_parameters(), 0.1, seed)
    model = model.to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder)
    return model


def randomise(parameters: Any, spread: float, seed: int) -> None:
    """Add noise, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(parameters):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_((noise * spread).to(parameter.dtype))


def save_adapter(
    model: Any, config: Any, folder: Path, *, seed: int = 1, spread: float = 0.2, **save: Any
) -> dict[str, Any]:
    """An adapter of random numbers on a copy of the model, saved by PEFT; the tensors of PEFT's own merge, by disk name."""
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
        wrapped.eval()
        randomise(((n, p) for n, p in wrapped.named_parameters() if p.requires_grad), spread, seed)
        wrapped.save_pretrained(folder, **save)
        merged = wrapped.merge_and_unload()
        merged.save_pretrained(folder.with_name(f"{folder.name}-merged"))
    return tensors(folder.with_name(f"{folder.name}-merged"))


def lora(*targets: str, **options: Any) -> Any:
    """A LoraConfig."""
    from peft import LoraConfig

    return LoraConfig(target_modules=list(targets), **{"r": 4, "lora_alpha": 6, **options})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def largest_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """max |found - wanted| / (1 + |wanted|) over all tensors, which must have the same names and shapes."""
    assert found.keys() == wanted.keys()
    assert all(found[name].shape == wanted[name].shape for name in found)
    return max(
        float(((found[name].double() - wanted[name].double()).abs() / (1 + wanted[name].double().abs())).max())
        for name in found
    )
