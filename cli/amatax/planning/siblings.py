"""Are these checkpoints siblings? Names, shapes, dtypes, layers, vocabularies, quantisation, configs, tokenizers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry
from amatax.checkpoints.dtypes import INTEGER, MERGEABLE
from amatax.checkpoints.folder import inside
from amatax.checkpoints.side_names import TOKENIZER_FILES
from amatax.errors import CheckpointError, Fault
from amatax.planning.names import Anatomy, Place

PREFIXES = ("model.", "transformer.", "language_model.", "base_model.", "model.language_model.")
PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|quant_state\..*|weight_scale|weight_scale_inv|weight_packed"
    r"|SCB|\w+_blocks|\w+_scales)$"
)
CONFIG_CHATTER = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "_attn_implementation"}
SHOWN_CONFIG = 12  # how many keys the plan lists
SHOWN = 3  # how many names a message lists


def align(sft: Checkpoint, other: Checkpoint, role: str) -> tuple[dict[str, TensorEntry], list[str]]:
    """The other model's tensors under the SFT model's names, if only a known prefix tells them apart; and notes."""
    if other.tensors.keys() == sft.tensors.keys():
        return other.tensors, []
    for prefix in PREFIXES:
        renamed = {}
        for name, entry in other.tensors.items():
            if name not in sft.tensors:
                if prefix + name in sft.tensors:
                    name = prefix + name
                elif name.startswith(prefix) and name.removeprefix(prefix) in sft.tensors:
                    name = name.removeprefix(prefix)
            renamed[name] = entry
        if renamed.keys() == sft.tensors.keys():
            return renamed, [
                f"{role}: names differ from sft's by the prefix {prefix!r}; they are matched, sft's are written"
            ]
    return other.tensors, []


def quantised(checkpoint: Checkpoint, role: str) -> Iterator[Fault]:
    """Weights that are packed codes, not numbers, cannot be averaged."""
    hint = "merge the unquantised checkpoints and quantise the result"
    quantisation = checkpoint.config.get("quantization_config") or {}
    method = quantisation
    if isinstance(quantisation, dict):
        method = quantisation.get("quant_method") or quantisation.get("quantization_method")
    packed = [name for name in checkpoint.tensors if PACKED.search(name)]
    strange = [e for e in checkpoint.tensors.values() if e.dtype not in MERGEABLE and e.dtype not in INTEGER]
    if quantisation:
        yield Fault(f"{role} is quantised ({method or 'quantization_config'} in its config.json)", checkpoint.ref, hint)
    elif packed:
        message = f"{role} is quantised: {len(packed)} packed tensors or scales, first {packed[0]!r}"
        yield Fault(message, checkpoint.ref, hint)
    elif strange:
        message = f"{role}: {len(strange)} tensors are {strange[0].dtype}, which cannot be averaged, first {strange[0].name!r}"
        yield Fault(message, checkpoint.ref, hint)


def same_tensors(
    sft: dict[str, TensorEntry],
    other: Checkpoint,
    tensors: dict[str, TensorEntry],
    role: str,
    mine: Anatomy,
    theirs: Anatomy,
    *,
    common_rows: bool,
) -> Iterator[Fault]:
    """Names and shapes, with what explains a difference said first; a base model may have other rows if the common ones are merged."""
    if mine.layers != theirs.layers:
        message = f"sft has {mine.layers} layers, {role} has {theirs.layers}"
        yield Fault(message, other.ref, "only checkpoints of one architecture and size can be merged")
        return
    missing = [name for name in sft if name not in tensors]
    extra = [name for name in tensors if name not in sft]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {_some(missing)} that sft has")
        if extra:
            parts.append(f"has {_some(extra)} that sft lacks")
        hint = "every tensor must be in both; are they fine-tunes of one base, saved by the same class?"
        yield Fault(f"{role} {' and '.join(parts)}", other.ref, hint)
    mixed = [n for n, e in sft.items() if n in tensors and (e.dtype in INTEGER) != (tensors[n].dtype in INTEGER)]
    if mixed:
        name = mixed[0]
        message = f"{len(mixed)} tensors are integers in one model only, first {name!r}: {sft[name].dtype} in sft, {tensors[name].dtype} in {role}"
        yield Fault(message, other.ref, "integers cannot be averaged with numbers; is one of them quantised?")
    differ = [n for n, e in sft.items() if n in tensors and tensors[n].shape != e.shape]
    vocabulary = [n for n in differ if only_rows_differ(sft[n], tensors[n], mine.places[n])]
    size = other.config.get("vocab_size")
    if isinstance(size, int):  # fewer rows: positions, or labels
        vocabulary = [n for n in vocabulary if tensors[n].shape[0] >= size]
    adapted = [n for n in vocabulary if tensors[n].delta is not None]
    if vocabulary and not (role == "base" and common_rows and not adapted):
        name = vocabulary[0]
        ours, others = sft[name].shape[0], tensors[name].shape[0]
        hint = f"bring both to one size first: model.resize_token_embeddings({max(ours, others)}), tokenizer included"
        if role == "base" and not adapted:
            hint = "`vocabulary: common` under `merge` merges the rows that all have, and averages sft and rlhf in the others"
        yield Fault(f"the vocabularies differ: {name!r} has {ours} rows in sft and {others} in {role}", other.ref, hint)
    rest = [n for n in differ if n not in vocabulary]
    if rest:
        name = rest[0]
        shapes = f"{list(sft[name].shape)} in sft, {list(tensors[name].shape)} in {role}"
        hint = "only checkpoints of one architecture and size can be merged"
        yield Fault(f"{len(rest)} tensors have other shapes, first {name!r}: {shapes}", other.ref, hint)


def only_rows_differ(sft: TensorEntry, other: TensorEntry, place: Place) -> bool:
    """Whether two tensors are those of vocabularies of different sizes."""
    rows = place.kind in ("embedding", "head") and sft.shape != other.shape
    return rows and len(sft.shape) == len(other.shape) > 0 and sft.shape[1:] == other.shape[1:]


def dtype_notes(sft: Checkpoint, tensors: dict[str, TensorEntry], role: str) -> Iterator[str]:
    """Different dtypes are merged, and said."""
    pairs: dict[tuple[str, str], int] = {}
    for name, entry in sft.tensors.items():
        if name in tensors and tensors[name].dtype != entry.dtype:
            key = (entry.dtype, tensors[name].dtype)
            pairs[key] = pairs.get(key, 0) + 1
    for (mine, theirs), count in sorted(pairs.items()):
        yield f"{count} tensors are {mine} in sft and {theirs} in {role}"


def config_differences(sft: Checkpoint, other: Checkpoint, besides: Collection[str] = ()) -> list[str]:
    """Keys (but some) whose values differ, as 'key: sft's -> other's'."""
    a, b = _flat(sft.config), _flat(other.config)
    keys = [key for key in sorted(a.keys() | b.keys()) if key.rpartition(".")[2] not in {*CONFIG_CHATTER, *besides}]
    found = [f"{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}" for key in keys if a.get(key) != b.get(key)]
    more = len(found) - SHOWN_CONFIG
    return found if more <= 0 else [*found[:SHOWN_CONFIG], f"and {more} more keys differ"]


def tokenizer_differences(sft: Checkpoint, other: Checkpoint) -> list[str]:
    """Tokenizer files that are in both folders and differ, or in one only."""
    names = {name for checkpoint in (sft, other) for name in checkpoint.names if "/" not in name}
    shared = sorted(name for name in names if TOKENIZER_FILES.fullmatch(name))
    return [file for file in shared if not _content(sft, file) & _content(other, file)]


def _content(checkpoint: Checkpoint, file: str) -> set[str]:
    """What identifies a file's content: of a repository's file what the Hub says, of one that is here everything the Hub may say."""
    if checkpoint.remote is not None:
        return {checkpoint.remote.get(file, "absent")}
    try:
        data = inside(checkpoint.folder, file, checkpoint.root).read_bytes()
    except (OSError, CheckpointError):  # absent, or a link that leads out, which is not followed
        return {"absent"}
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return {blob.hexdigest(), hashlib.sha256(data).hexdigest()}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun} ({shown}{', ...' if len(names) > SHOWN else ''})"
