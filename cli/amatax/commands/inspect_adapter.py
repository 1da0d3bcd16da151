"""What amatax inspect shows of an adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from amatax.commands.text import columns, human_bytes

if TYPE_CHECKING:
    from amatax.api import AdapterInspection

MOST = 1 << 53  # a rank beyond that is none, and its quotient no float


def adapter_lines(one: AdapterInspection, *, names: bool = False) -> list[str]:
    """An adapter's parts for people; or its tensors, by PEFT's names."""
    adapter, said, config = one.opened.adapter, one.opened.config, one.config
    tensors = one.opened.tensors
    if names:
        return columns([[e.dtype, str(list(e.shape)), _text(name)] for name, e in tensors.items()])
    lines = [f"{adapter.ref}{f' at {adapter.commit}' if adapter.commit else ''}: an adapter of {_kind(one)}"]
    if config is not None:
        lines.append(f"rank {config.rank}, alpha {config.alpha:g}: a scale of {_scale(one):.4g}")
        patterns = {"rank": config.ranks, "alpha": config.alphas}
        rows = [f"{key} {value} of {_text(name)}" for key, found in patterns.items() for name, value in found.items()]
        lines += [f"  {row}" for row in rows]
    lines.append(f"target modules: {_listed(said.get('target_modules'))}")
    if said.get("modules_to_save"):
        lines.append(f"saved whole: {_listed(said['modules_to_save'])}")
    if said.get("base_model_name_or_path"):
        lines.append(f"trained on {_listed(said['base_model_name_or_path'])}")
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    weights = adapter.files[0]
    lines.append(
        f"{len(tensors)} tensors, {parameters:,} parameters, {human_bytes(weights.size)} in {weights.path.name}"
    )
    return [*lines, *(f"no merge can use it: {fault.message}" for fault in one.faults)]


def adapter_json(one: AdapterInspection) -> dict[str, Any]:
    """The same for scripts; `rank`, `alpha` and `scale` are null where no merge can use it, and `faults` say why."""
    adapter, said, config = one.opened.adapter, one.opened.config, one.config
    return {
        "adapter": adapter.ref,
        "commit": adapter.commit,
        "type": said.get("peft_type"),
        "rank": config.rank if config else None,
        "alpha": config.alpha if config else None,
        "scale": _scale(one) if config else None,
        "rank_pattern": dict(config.ranks) if config else None,
        "alpha_pattern": dict(config.alphas) if config else None,
        "rslora": config.rslora if config else None,
        "dora": config.dora if config else None,
        "target_modules": said.get("target_modules"),
        "modules_to_save": said.get("modules_to_save"),
        "trained_on": said.get("base_model_name_or_path"),
        "bytes": adapter.files[0].size,
        "tensors": {
            name: {"dtype": e.dtype, "shape": list(e.shape), "bytes": e.nbytes}
            for name, e in one.opened.tensors.items()
        },
        "faults": [fault.message for fault in one.faults],
    }


def _kind(one: AdapterInspection) -> str:
    if one.config is None:
        return f"the type {_text(str(one.opened.config.get('peft_type')))}"
    more = [name for name, here in (("rank-stabilised", one.config.rslora), ("DoRA", one.config.dora)) if here]
    return "the type LoRA" + (f" ({', '.join(more)})" if more else "")


def _scale(one: AdapterInspection) -> float | None:
    """By which b @ a is multiplied, where no pattern says otherwise."""
    if one.config is None:
        return None
    rank = min(one.config.rank, MOST)
    return one.config.alpha / (math.sqrt(rank) if one.config.rslora else rank)


def _listed(value: Any) -> str:
    """Names, or the regular expression that stands for them."""
    if isinstance(value, Iterable) and not isinstance(value, str | dict):
        return ", ".join(_text(str(item)) for item in value)
    return _text(str(value)) if value is not None else "PEFT's own for this architecture"


def _text(value: str) -> str:
    """No escapes to the terminal."""
    return value if value.isprintable() else repr(value)
