"""adapter_config.json: what a merge needs of it, and what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amatax.errors import Fault

AGAIN = "save the adapter again with PEFT's `save_pretrained`"
MERGE_FIRST = "merge it with PEFT (`merge_and_unload`), save that, and name the result without `adapter`"
CONVERT = "save it again with PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`"
OTHER_MATHS = {  # keys of the config that change what is computed
    "alora_invocation_tokens": "is applied to some tokens only (aLoRA), which no weight can be",
    "arrow_config": "chooses among adapters token by token (Arrow)",
    "kasa_config": "takes singular values out of the model's own weights (KaSA)",
    "layer_replication": "repeats layers of the model, which is then another one",
    "megatron_config": "was trained on Megatron's parallel layers",
    "monteclora_config": "samples its weights (MonteCLoRA)",
    "target_parameters": "adapts parameters that are no modules' weights (target_parameters: experts in one tensor)",
    "trainable_token_indices": "trains rows for single tokens (trainable_token_indices)",
    "use_bdlora": "has block-diagonal factors (BD-LoRA)",
    "use_qalora": "pools its inputs for quantised layers (QA-LoRA)",
}
FLAGS = ("use_rslora", "use_dora", "fan_in_fan_out")  # in the order of LoraConfig's fields
LARGEST = 1e30  # of a scale, so that nothing made of it overflows
CHANGES_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga")  # initialisations that change the model's own weights


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA adapter's numbers.

    Attributes:
        rank, alpha: r and lora_alpha, where no pattern says otherwise.
        ranks, alphas: rank_pattern and alpha_pattern: regular expressions over module names.
        rslora: the scale is alpha / sqrt(r) (arXiv 2312.03732), not alpha / r.
        dora: it has magnitudes (arXiv 2402.09353).
        fan_in_fan_out: weights are stored inputs first, as far as PEFT knew.
        saved: modules_to_save: ends of the names of modules that are whole in the adapter.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False
    saved: tuple[str, ...] = ()

    def saves(self, name: str) -> bool:
        """Whether a tensor is one of modules_to_save."""
        return name.rpartition(".")[0].endswith(self.saved)

    def of(self, module: str) -> tuple[int, float]:
        """(rank, alpha) of a module, by the first pattern that its name ends with, as in PEFT's get_pattern_key."""
        return _first(self.ranks, module, self.rank), _first(self.alphas, module, self.alpha)


def lora_config(config: Mapping[str, Any]) -> tuple[LoraConfig | None, list[Fault]]:
    """(what it says, []), or (None, everything that is wrong with it)."""
    kind = config.get("peft_type")
    if kind != "LORA":
        known = "LoRA adapters (with rank-stabilised scales and DoRA) are merged while they stream"
        return None, [Fault(f"is of the type {kind!r}, not LORA", hint=f"{known}; of others {MERGE_FIRST}")]
    faults = [Fault(f"it {why}", hint=MERGE_FIRST) for key, why in OTHER_MATHS.items() if config.get(key)]
    for key in FLAGS:
        if not isinstance(config.get(key), bool | None):
            faults.append(Fault(f"{key} is {config[key]!r}, neither true nor false", hint=AGAIN))
    init = config.get("init_lora_weights")
    if not isinstance(init, bool | str | None):
        faults.append(Fault(f"init_lora_weights is {init!r}, neither a name nor true nor false", hint=AGAIN))
    begun = init.lower() if isinstance(init, str) else ""
    if begun.startswith(CHANGES_WEIGHTS):
        message = f"it was begun by {begun!r}, which changes the model's own weights: added to them it is another model"
        faults.append(Fault(message, hint=CONVERT))
    rank, alpha = config.get("r"), config.get("lora_alpha")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not (_is_rank(rank) and isinstance(ranks, dict) and all(map(_is_rank, ranks.values()))):
        faults.append(Fault(f"its ranks (r: {rank!r}, rank_pattern: {ranks!r}) are no positive integers", hint=AGAIN))
    if not (_is_number(alpha) and isinstance(alphas, dict) and all(map(_is_number, alphas.values()))):
        faults.append(
            Fault(f"its scales (lora_alpha: {alpha!r}, alpha_pattern: {alphas!r}) are no numbers", hint=AGAIN)
        )
    saved = config.get("modules_to_save") or []
    if not (isinstance(saved, list) and all(isinstance(module, str) for module in saved)):
        faults.append(Fault(f"modules_to_save is {saved!r}, no list of names", hint=AGAIN))
    for pattern in {**_mapping(ranks), **_mapping(alphas)}:
        try:
            re.compile(_ending(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            message = f"the pattern {pattern!r} of its ranks or scales is no regular expression ({error})"
            faults.append(Fault(message, hint=AGAIN))
    if faults:
        return None, faults
    rslora, dora, inputs_first = (bool(config.get(key)) for key in FLAGS)
    assert rank is not None and alpha is not None  # checked above
    return LoraConfig(rank, alpha, ranks, alphas, rslora, dora, inputs_first, tuple(saved)), []


def _first(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    return next((value for pattern, value in patterns.items() if re.match(_ending(pattern), module)), usual)


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # of NaN false
