"""Is the output head the token embedding? The tensors are trusted first, the config second."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry, architectures, tie_flag
from amatax.errors import Fault
from amatax.planning.names import Anatomy, is_token_embedding

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
WITHOUT_VOCABULARY = ("Classification", "QuestionAnswering", "MultipleChoice", "RewardModel")  # another head
VOCABULARY_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output|head)\.weight$")


@dataclass
class Tying:
    """What was found.

    Attributes:
        tied: one matrix; None if the model has no head over the vocabulary.
        own_head: name of the head that tied models get a matrix of their own for (`untie`), with their embedding's name by role.
    """

    tied: bool | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    own_head: tuple[str, dict[str, str]] | None = None
    pair: tuple[str, ...] = ()  # tied, and on disk twice


def resolve_tying(
    untie: bool,
    checkpoints: dict[str, Checkpoint],
    tensors: dict[str, dict[str, TensorEntry]],
    models: dict[str, Anatomy],
) -> Tying:
    """Find out whether each model ties its embeddings, and whether they agree."""
    owned = {role: head_names(entries, models[role]) for role, entries in tensors.items()}
    named = {name for _, heads in owned.values() for name in heads}  # a head of another shape is no missing head
    without = [
        r for r, (embeddings, heads) in owned.items() if embeddings and not heads and not named & tensors[r].keys()
    ]
    having = [role for role, (_, heads) in owned.items() if heads]
    config = checkpoints["sft"].config
    embeddings, heads = owned["sft"]
    if without and having:
        head = owned[having[0]][1][0]
        if not untie:
            message = f"{having[0]} has a head of its own ({head!r}), {without[0]} ties it to its embeddings"
            hint = "write `untie: true` under `merge`: both are merged as two matrices"
            return Tying(faults=[Fault(message, checkpoints[without[0]].ref, hint)])
        note = f"{' and '.join(without)} ties its embeddings: its head is written as a matrix of its own, {head!r}"
        return Tying(False, [note], own_head=(head, {role: owned[role][0][0] for role in without}))
    if heads and (tie_flag(config) is False or not embeddings):
        return Tying(False)
    if heads:
        pair = f"{heads[0]!r} and {embeddings[0]!r}"
        if all(same_bytes(t[embeddings[0]], t[head]) for t in tensors.values() for head in heads if head in t):
            return Tying(
                True, [f"embeddings are tied and on disk twice: {pair} follow `head`"], pair=(heads[0], embeddings[0])
            )
        return Tying(
            False, [] if tie_flag(config) is None else [f"config.json says tied, but {pair} differ: two matrices"]
        )
    if embeddings and is_tied(config):
        notes = [f"embeddings are tied: {embeddings[0]!r} counts as the head, and `head` decides its ratio"]
        if tie_flag(config) is False:
            notes.append("config.json says untied, but no head is on disk")
        return Tying(True, notes)
    return Tying()


def head_names(tensors: dict[str, TensorEntry], model: Anatomy) -> tuple[list[str], list[str]]:
    """(token embeddings, heads over the vocabulary, which may have more or fewer rows)."""
    embeddings = [n for n in tensors if n in model.places and is_token_embedding(n, model.places[n])]
    shapes = {tensors[n].shape for n in embeddings}
    heads = [n for n in tensors if n in model.places and model.places[n].kind == "head"]
    heads = [n for n in heads if tensors[n].shape in shapes or VOCABULARY_HEAD.search(n)]
    return embeddings, heads


def is_language_model(config: dict[str, Any]) -> bool:
    """Whether the class that the config names has a head over the vocabulary."""
    return any(name.endswith(LANGUAGE_MODELS) for name in architectures(config))


def is_tied(config: dict[str, Any]) -> bool:
    """Whether a model without a head on disk ties it to its embeddings: the flag says nothing where there is no such head."""
    classes = architectures(config)
    if any(name.endswith(WITHOUT_VOCABULARY) for name in classes):
        return False
    return bool(tie_flag(config)) or is_language_model(config)


def same_bytes(a: TensorEntry, b: TensorEntry, block: int = 1 << 22) -> bool:
    """Whether two tensors hold the same bytes. Reads tensor data: only for a tied pair that is on disk twice."""
    if a.delta != b.delta:
        return False
    if (a.path, a.offset, a.nbytes) == (b.path, b.offset, b.nbytes):
        return True
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.path.open("rb") as fa, b.path.open("rb") as fb:
        fa.seek(a.offset)
        fb.seek(b.offset)
        left = a.nbytes
        while left > 0:
            n = min(block, left)
            if fa.read(n) != fb.read(n):
                return False
            left -= n
    return True
