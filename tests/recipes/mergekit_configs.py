"""mergekit configurations for tests, what they become, and a small model whose tensors are known."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from amatax.planning.names import anatomy
from amatax.recipes.mergekit import Imported, Known, Tensor, parse_mergekit, to_recipe

LAYERS = 6
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(LAYERS)
        for part in ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
MODEL = anatomy(NAMES, {"num_hidden_layers": LAYERS})
KNOWN = Known({name: Tensor(p.layer, p.kind) for name, p in MODEL.places.items()}, LAYERS)


def imported(text: str, known: Known | None = None, **options: Any) -> Imported:
    return to_recipe(parse_mergekit(textwrap.dedent(text), "m.yml"), known or Known(), Path("r.yaml"), **options)


def merge_of(text: str, known: Known | None = None, **options: Any) -> dict[str, Any]:
    return yaml.safe_load(imported(text, known, **options).text)["merge"]


def config(method: str, sft: str = "", rlhf: str = "", top: str = "", base: bool = True) -> str:
    """Two models with their parameters, and those of all."""
    return (
        f"merge_method: {method}\n" + ("base_model: acme/base\n" if base else "") + "models:\n"
        f"  - {{model: acme/sft, parameters: {{{sft}}}}}\n  - {{model: acme/rlhf, parameters: {{{rlhf}}}}}\n"
        f"parameters: {{{top}}}\n"
    )


LINEAR = ("linear", "weight: 3", "weight: 1")
SLERP = "merge_method: slerp\nbase_model: acme/sft\nmodels: [{model: acme/sft}, {model: acme/rlhf}]\n"
