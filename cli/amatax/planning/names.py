"""Tensor name on disk -> place in the model, by a rule instead of a table of architectures.

The leftmost integer in a name is a layer index and what stands before it is its stack; the backbone is the stack that has
exactly the layers that the config promises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from amatax.checkpoints.checkpoint import TEXT_CONFIGS

Kind = Literal["attention", "mlp", "layer", "norm", "head", "embedding", "other"]

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers", "decoder_layers")
ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "num_layers", "n_layers", "num_hidden_layers")
DECODER_KEYS = ("decoder_layers", "num_decoder_layers", "num_layers", "n_layers", "num_hidden_layers")

INDEX = re.compile(r"(?:^|\.)(\d{1,9})(?=\.|$)")
BESIDE = re.compile(r"visi|visual|audio|projector|merger|mtp|image|speech", re.IGNORECASE)  # stacks beside the backbone
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|score|cls\.predictions)(\.|$)|^(output|head)\.")
EMBEDDING = re.compile(r"embed|wte|wpe|word_emb|(^|\.)shared(\.|$)", re.IGNORECASE)
BESIDE_TOKENS = re.compile(r"pos|wpe|token_type|per_layer", re.IGNORECASE)  # embeddings that no head is tied to
NORM = re.compile(r"norm|(^|[._])ln(_|\d|\.|$)", re.IGNORECASE)
ATTENTION = re.compile(r"att(n|ention)|(^|\.)[qkvo]_proj(\.|$)|(^|\.)(query_key_value|c_attn)(\.|$)", re.IGNORECASE)
MLP = re.compile(
    r"mlp|ffn|feed_?forward|experts?\b|moe|(^|\.)(fc_?\d|fc_in|fc_out|intermediate|output\.dense|dense_\w*|DenseReluDense"
    r"|gate_proj|up_proj|down_proj|w[123])(\.|$)",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """Where a tensor stands: its backbone layer (None outside) and its kind."""

    layer: int | None
    kind: Kind


@dataclass(frozen=True)
class Stack:
    """One numbered series of modules, as found in the names."""

    prefix: str
    indices: frozenset[int]
    tensors: int


@dataclass(frozen=True)
class Anatomy:
    """A checkpoint's parts.

    Attributes:
        layers: how many backbone layers there are; an encoder's come first, then the decoder's.
        backbone: prefixes of the backbone's stacks, in layer order.
        places: by tensor name.
        promised: the layers that the config promises (None if it names no number).
    """

    layers: int
    backbone: tuple[str, ...]
    stacks: tuple[Stack, ...]
    places: dict[str, Place]
    promised: int | None


def anatomy(names: Iterable[str], config: dict[str, Any]) -> Anatomy:
    """Place every tensor name."""
    names = list(names)
    split = {name: _split(name) for name in names}
    members: dict[str, list[int]] = {}
    for prefix, index in split.values():
        if prefix is not None:
            members.setdefault(prefix, []).append(index)
    stacks = tuple(Stack(prefix, frozenset(indices), len(indices)) for prefix, indices in members.items())

    first_layer: dict[str, int] = {}  # backbone prefix -> number of its layer 0
    counts: dict[str, int] = {}
    layers = 0
    promised = _promised(config)
    for side, count in promised:
        best = _best(stacks, side, count)
        if best is not None and best.prefix not in counts:
            first_layer[best.prefix], counts[best.prefix] = layers, count or max(best.indices) + 1
            layers += counts[best.prefix]

    places = {}
    for name, (prefix, index) in split.items():
        if prefix in counts and index < counts[prefix]:
            places[name] = Place(first_layer[prefix] + index, _kind_in_layer(name, prefix))
        elif prefix in counts or (prefix is not None and len(members[prefix]) > 1 and max(members[prefix]) > 0):
            places[name] = Place(None, "other")  # a layer beyond the backbone, or another stack
        else:
            places[name] = Place(None, _kind_outside(name))
    total = sum(count for _, count in promised if count) or None
    return Anatomy(layers, tuple(counts), stacks, places, total)


def is_token_embedding(name: str, place: Place) -> bool:
    """Whether a tensor is the matrix that a tied head shares."""
    return place.kind == "embedding" and BESIDE_TOKENS.search(name) is None


def _split(name: str) -> tuple[str | None, int]:
    """'model.layers.3.mlp.experts.0.w1' -> ('model.layers', 3); (None, -1) without an index."""
    found = INDEX.search(name)
    return (name[: found.start()], int(found[1])) if found else (None, -1)


def _promised(config: dict[str, Any]) -> list[tuple[str | None, int | None]]:
    """[(side, number of layers)]: two sides for an encoder-decoder, else one; the number is None if no key names it."""
    if config.get("is_encoder_decoder") and not any(isinstance(config.get(k), dict) for k in ("encoder", "decoder")):
        encoder = _first_int(config, ENCODER_KEYS)
        return [("encoder", encoder), ("decoder", _first_int(config, DECODER_KEYS) or encoder)]
    count = _first_int(config, LAYER_KEYS)
    here: Any = config
    while count is None and isinstance(here, dict):
        here = next((here[key] for key in TEXT_CONFIGS if isinstance(here.get(key), dict)), None)
        count = _first_int(here or {}, LAYER_KEYS)
    return [(None, count)]


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if type(config.get(key)) is int and config[key] > 0), None)


def _best(stacks: tuple[Stack, ...], side: str | None, count: int | None) -> Stack | None:
    """The stack that is the backbone (or one side of it)."""

    def rank(stack: Stack) -> tuple[bool, int, int]:
        if count is None:
            return False, len(stack.indices), stack.tensors
        covered = len([i for i in stack.indices if i < count])
        return len(stack.indices) == count and covered == count, covered, stack.tensors

    candidates = [s for s in stacks if not BESIDE.search(s.prefix) and (side is None or side in s.prefix.split("."))]
    return max(candidates, key=rank, default=None)


def _kind_in_layer(name: str, prefix: str) -> Kind:
    inner = name[len(prefix) :]
    inner = inner[inner.index(".", 1) :] if "." in inner[1:] else inner
    module = re.sub(r"(\.\d+)+$", "", inner.rpartition(".")[0] or inner)  # q_layernorm.norms.3.weight: norms
    if NORM.search(module.rpartition(".")[2]):
        return "norm"
    # the outermost module decides: self_attn.experts would be attention, mlp.gate_attn an MLP
    attention, mlp = ATTENTION.search(inner), MLP.search(inner)
    if attention and mlp:
        return "attention" if attention.start() <= mlp.start() else "mlp"
    return "attention" if attention else "mlp" if mlp else "layer"


def _kind_outside(name: str) -> Kind:
    if BESIDE.search(name):
        return "other"
    if NORM.search(name):
        return "norm"
    if HEAD.search(name):
        return "head"
    return "embedding" if EMBEDDING.search(name) else "other"
