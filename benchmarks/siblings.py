"""Three siblings of about 2.2 GB (TinyLlama-1.1B shape, bf16, random and not zero, 3 shards), and smaller and odder ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
}
ROLES = ("base", "sft", "rlhf")


def llama_shape(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a Llama (TinyLlama-1.1B, 22 layers: 201 tensors, 2.2 GB in bf16)."""
    width, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.self_attn.q_proj.weight": (width, width),
            f"{at}.self_attn.k_proj.weight": (keys, width),
            f"{at}.self_attn.v_proj.weight": (keys, width),
            f"{at}.self_attn.o_proj.weight": (width, width),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.mlp.gate_proj.weight": (inner, width),
            f"{at}.mlp.up_proj.weight": (inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
        }
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (words, width)}


def small_tensors(count: int) -> dict[str, tuple[int, ...]]:
    """Very many small tensors, as a mixture of experts saved apart has them."""
    return {f"model.layers.{i % 10}.mlp.experts.{i // 10}.w1.weight": (64,) for i in range(count)}


def write_siblings(folder: Path, shapes: dict[str, tuple[int, ...]], shards: int, config: dict[str, Any]) -> None:
    """folder/{base,sft,rlhf}, each in `shards` files with an index; deltas of sigma 2e-4 on weights of sigma 0.02."""
    import torch
    from safetensors.torch import save_file

    names = list(shapes)
    size = sum(torch.Size(s).numel() for s in shapes.values())
    groups: list[list[str]] = [[] for _ in range(shards)]
    done = 0
    for name in names:
        groups[min(shards - 1, done * shards // size)].append(name)
        done += torch.Size(shapes[name]).numel()
    for seed, role in enumerate(ROLES):
        out = folder / role
        if (out / "config.json").exists():
            continue
        out.mkdir(parents=True, exist_ok=True)
        weight_map: dict[str, str] = {}
        for g, group in enumerate(groups):
            file = f"model-{g + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
            tensors = {}
            for i, name in enumerate(group):
                base = torch.randn(shapes[name], generator=torch.Generator().manual_seed(1000 * g + i)) * 0.02
                delta = torch.randn(
                    shapes[name], generator=torch.Generator().manual_seed(10**6 * (seed + 1) + 1000 * g + i)
                )
                tensors[name] = (base + 2e-4 * seed * delta).bfloat16()
            save_file(tensors, out / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(group, file)
        if shards > 1:
            index = {"metadata": {"total_size": 2 * size}, "weight_map": weight_map}
            (out / "model.safetensors.index.json").write_text(json.dumps(index))
        (out / "config.json").write_text(json.dumps({**LLAMA, **config}))


def llama_config(layers: int, vocabulary: int = 32000) -> dict[str, Any]:
    """config.json of a TinyLlama with that many layers and words."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
    return {**sizes, "num_hidden_layers": layers, "vocab_size": vocabulary}


if __name__ == "__main__":
    work = Path(sys.argv[1])
    for name, config in (("M", llama_config(22)), ("Q", llama_config(5, vocabulary=8000))):
        write_siblings(work / name, llama_shape(config), 3, config)
    for size in (5_000, 50_000):
        write_siblings(work / f"S{size}", small_tensors(size), 1, {"num_hidden_layers": 10})
