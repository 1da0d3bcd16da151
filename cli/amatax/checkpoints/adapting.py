"""An opened model and an opened adapter -> the model's checkpoint with the adapter on it: every tensor's entry says what it carries.

What PEFT's `merge_and_unload` computes, found from headers alone. Names and formulas: PEFT 0.21, `peft/tuners/lora/layer.py`
(`get_delta_weight`) and `peft/tuners/lora/variants.py` (DoRA).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from amatax.checkpoints.adapter import CONFIG, OpenedAdapter
from amatax.checkpoints.checkpoint import Checkpoint, LowRank, TensorEntry, tie_flag
from amatax.checkpoints.dtypes import MERGEABLE
from amatax.checkpoints.lora_config import AGAIN, MERGE_FIRST, LoraConfig, lora_config
from amatax.checkpoints.matching import DiskNames
from amatax.errors import AdapterError, Fault

PREFIX = "base_model.model."  # what PEFT wraps around a model
PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight|\.bias)?")
HEADS = ("lm_head", "embed_out")
TOKEN_MATRIX = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared)\.weight$")
SHOWN = 3  # names that a message lists
TWICE = "several tensors of the adapter for one of the model"
ANOTHER = "is it an adapter of another model?"


class _Faults:
    """One fault for each kind of trouble, with the first few of what is troubled."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, message: str, hint: str, which: str) -> None:
        """`message` says in the plural what `which` is one of."""
        self._found.setdefault((message, hint), []).append(which)

    def __iter__(self) -> Iterator[Fault]:
        for (message, hint), which in self._found.items():
            more = ", ..." if len(which) > SHOWN else ""
            yield Fault(f"{message}, {len(which)}: {'; '.join(which[:SHOWN])}{more}", hint=hint)


def put_on(model: Checkpoint, opened: OpenedAdapter) -> Checkpoint:
    """The model's checkpoint with the adapter's changes in its entries.

    Raises:
        AdapterError: with everything that is wrong with the adapter, or does not fit.
    """
    where = f"the adapter {opened.adapter.ref}"
    config, wrong = lora_config(opened.config)
    if config is None:
        raise AdapterError([Fault(f"{where}: {fault.message}", hint=fault.hint) for fault in wrong])
    work = _Adapting(model, opened, config)
    work.place_all()
    if faults := list(work.faults):
        raise AdapterError([Fault(f"{where}: {fault.message}", hint=fault.hint) for fault in faults])
    adapter = replace(opened.adapter, changes=len(work.changed))
    notes = [*model.notes, *work.notes]
    return replace(model, tensors={**model.tensors, **work.changed}, notes=notes, adapter=adapter)


class _Adapting:
    """One adapter on its way to one model.

    Attributes:
        changed: the entries that are others now, by disk name.
        faults, notes: what came up.
    """

    def __init__(self, model: Checkpoint, opened: OpenedAdapter, config: LoraConfig) -> None:
        self.model, self.opened, self.config = model, opened, config
        self.names = DiskNames(model.tensors)
        self.changed: dict[str, TensorEntry] = {}
        self.whole: dict[str, str] = {}  # disk name -> the adapter's key for what replaces it
        self.notes: list[str] = []
        self.faults = _Faults()

    def place_all(self) -> None:
        """Every tensor of the adapter to its place."""
        modules, whole = self._sorted()
        for module, entry in whole.items():
            self._replace(module, entry)
        for module, parts in modules.items():
            self._add(module, parts)

    def _sorted(self) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, TensorEntry]]:
        """(low-rank parts by module, whole tensors by name), by the names that the model has in memory."""
        modules: dict[str, dict[str, TensorEntry]] = {}
        whole: dict[str, TensorEntry] = {}
        for key, entry in self.opened.tensors.items():
            name = key.removeprefix(PREFIX)
            if entry.dtype not in MERGEABLE:
                self.faults.add(f"tensors of {entry.dtype}, no numbers", AGAIN, repr(name))
            if match := PART.fullmatch(name):
                part = match[2].removeprefix("lora_embedding_").removeprefix("lora_") + (match[3] or "")
                part = part.removesuffix(".weight") + ("*" if "embedding" in match[2] else "")
                before = modules.setdefault(match[1], {}).setdefault(part, entry)
            else:
                before = whole.setdefault(name, entry)
            if before is not entry:  # with PEFT's prefix and without
                self.faults.add(TWICE, AGAIN, f"{before.name!r} and {key!r}")
        return modules, whole

    def _replace(self, name: str, entry: TensorEntry) -> None:
        """A tensor that stands for the model's own: modules_to_save, trained biases, embeddings saved beside their adapter."""
        kept = ".base_layer." in name  # of a module that is adapted, too; of a tied head the embedding itself
        disk = self._place(name.replace(".base_layer.", ".").replace(".modules_to_save.", "."), tied=kept)
        if disk is None:
            return
        if not kept and self._is_one_for_two(disk) and self.config.saves(name):
            message = "embeddings of their own (modules_to_save) on a model that ties its head to them"
            self.faults.add(f"{message}: in PEFT's merge the head stays as it was", MERGE_FIRST, repr(name))
            return
        mine = self.model.tensors[disk]
        if mine.shape != entry.shape:
            hint = ANOTHER
            if len(mine.shape) == 2 and mine.shape[1:] == entry.shape[1:]:
                size = f"model.resize_token_embeddings({entry.shape[0]})"
                hint = f"bring the model to its size first ({size}) and save it"
            which = f"{disk!r} is {list(mine.shape)}, the adapter's is {list(entry.shape)}"
            self.faults.add("whole tensors of another shape than the model's", hint, which)
            return
        if self.whole.setdefault(disk, entry.name) != entry.name:
            self.faults.add(TWICE, AGAIN, f"{self.whole[disk]!r} and {entry.name!r} for {disk!r}")
            return
        self.changed[disk] = entry._replace(name=disk)

    def _add(self, module: str, parts: Mapping[str, TensorEntry]) -> None:
        """What is low-rank, on a module's weight and its bias."""
        embedding = "A*" in parts or "B*" in parts
        a, b = (parts.get("A*"), parts.get("B*")) if embedding else (parts.get("A"), parts.get("B"))
        magnitude, bias = parts.get("magnitude_vector"), parts.get("B.bias")
        if a is None or b is None or len(parts) != sum(part is not None for part in (a, b, magnitude, bias)):
            has = ", ".join(sorted(entry.name.removeprefix(f"{PREFIX}{module}.") for entry in parts.values()))
            self.faults.add("modules that lack a part of their adapter", AGAIN, f"{module!r} has {has}")
            return
        disk = self._place(f"{module}.weight", tied=True)
        if disk is None:
            return
        rank, alpha = self.config.of(module)
        shapes = f"A is {list(a.shape)}, B is {list(b.shape)}"
        if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
            self.faults.add("modules whose factors do not belong together", AGAIN, f"{module!r}: {shapes}")
        elif rank != a.shape[0]:
            which = f"{module!r} has {a.shape[0]}, {CONFIG} says {rank}"
            self.faults.add("modules with another rank than the config says", AGAIN, which)
        elif self.config.dora != (magnitude is not None):
            has = "no magnitudes" if self.config.dora else "magnitudes"
            self.faults.add(f"modules with {has}, against use_dora in {CONFIG}", AGAIN, repr(module))
        elif magnitude is not None and {max(magnitude.shape, default=0), math.prod(magnitude.shape)} != {b.shape[0]}:
            which = f"{module!r} has {list(magnitude.shape)} for {b.shape[0]} outputs"
            self.faults.add("modules without one magnitude for each output", AGAIN, which)
        else:
            scale = alpha / (math.sqrt(rank) if self.config.rslora else rank)
            self._put(disk, module, LowRank(a, b, scale, embedding, magnitude))
            if bias is not None:
                self._add_bias(module, bias, scale)

    def _put(self, disk: str, module: str, change: LowRank) -> None:
        """The low-rank change into the entry of a weight; `transposed` comes as what the kind of module demands."""
        entry, a, b = self.changed.get(disk, self.model.tensors[disk]), change.a, change.b
        assert a is not None  # of a weight
        plain = entry.shape == (b.shape[0], *a.shape[1:]) and math.prod(b.shape[2:]) == 1 and not change.transposed
        flipped = len(a.shape) == len(b.shape) == 2 and entry.shape == (a.shape[1], b.shape[0])
        if entry.delta is not None:
            which = f"{disk!r}, by {entry.delta.b.name!r} and {change.b.name!r}"
            self.faults.add("tensors adapted twice (tied weights)", MERGE_FIRST, which)
        elif not plain and not flipped:
            which = f"{disk!r} is {list(entry.shape)}, A is {list(a.shape)} and B {list(b.shape)}"
            self.faults.add("tensors whose shapes the adapter does not fit", ANOTHER, which)
        elif entry.dtype not in MERGEABLE:
            hint = "put the adapter on the unquantised model"
            self.faults.add(f"adapted tensors of {entry.dtype}, no numbers", hint, repr(disk))
        else:
            transposed = flipped and (not plain or self._inputs_first(disk))
            self.changed[disk] = entry._replace(name=disk, delta=change._replace(transposed=transposed))
            if self._is_one_for_two(disk):
                self.notes.append(f"{disk!r} is also the head (tied): the adapter changes both, as PEFT's merge does")

    def _add_bias(self, module: str, bias: TensorEntry, scale: float) -> None:
        disk = self._place(f"{module}.bias", tied=False)
        if disk is None:
            return
        entry = self.changed.get(disk, self.model.tensors[disk])
        if entry.shape != bias.shape:
            which = f"{disk!r} is {list(entry.shape)}, the adapter's is {list(bias.shape)}"
            self.faults.add("biases of another shape than the model's", ANOTHER, which)
            return
        if entry.delta is not None:
            self.faults.add(TWICE, AGAIN, f"{entry.delta.b.name!r} and {bias.name!r} for {disk!r}")
            return
        self.changed[disk] = entry._replace(name=disk, delta=LowRank(None, bias, scale))

    def _place(self, name: str, *, tied: bool) -> str | None:
        """The disk name of a tensor of the model in memory; None, and a fault, if it has none."""
        found = self.names.find(name)
        if len(found) == 1 and (twins := self._tied_twins(found[0])):
            hint = "drop the second matrix: load the model with transformers, save it again, and name that"
            which = f"{found[0]!r} and {' and '.join(map(repr, twins))}"
            self.faults.add("adapted embeddings or heads that are tied and on disk twice", hint, which)
            return None
        if len(found) == 1:
            return found[0]
        if found:
            which = f"{name!r} may be {' or '.join(map(repr, found[:SHOWN]))}"
            self.faults.add("names that stand for several tensors of the model", MERGE_FIRST, which)
            return None
        if _leaf(name) in HEADS and self._is_tied():
            embeddings = [n for n in self.model.tensors if TOKEN_MATRIX.search(n)]
            if tied and len(embeddings) == 1:
                return embeddings[0]
            self.faults.add("tensors for a head that the model ties to its embeddings", MERGE_FIRST, repr(name))
            return None
        if near := self.names.beside(name):
            message = f"tensors that the model's files do not have (there they have {', '.join(near[:8])})"
            hint = f"transformers joins or renames weights there that the files have otherwise: {MERGE_FIRST}"
            self.faults.add(message, hint, repr(name))
            return None
        base = self.opened.config.get("base_model_name_or_path")
        hint = f"was it trained on another model? It says {base!r}" if base else "was it trained on another model?"
        self.faults.add("tensors for modules that the model does not have", hint, repr(name))
        return None

    def _tied_twins(self, disk: str) -> list[str]:
        """The other names on disk of a tied matrix: one parameter for PEFT, and headers do not tell whether they hold the same."""
        if not self._is_tied() or not _is_vocabulary(disk):
            return []
        shape = self.model.tensors[disk].shape
        return [
            n for n, entry in self.model.tensors.items() if n != disk and _is_vocabulary(n) and entry.shape == shape
        ]

    def _is_one_for_two(self, disk: str) -> bool:
        """Whether a tensor is the embedding and the head, which the files hold once."""
        has_head = any(_leaf(n) in HEADS for n in self.model.tensors)
        return bool(TOKEN_MATRIX.search(disk)) and self._is_tied() and not has_head

    def _is_tied(self) -> bool:
        """Whether head and embedding are one: yes, unless the config says no."""
        return tie_flag(self.model.config) is not False

    def _inputs_first(self, disk: str) -> bool:
        """Whether a square weight is stored (inputs, outputs), as Conv1D does: its neighbours in the layer tell, else the config.

        PEFT sets fan_in_fan_out while it walks through the modules, so that a saved config has what the last one was; and where a
        config says it of a linear layer, PEFT warns and reads it as one. Conv1D always has a bias.
        """
        if f"{disk.removesuffix('.weight')}.bias" not in self.model.tensors:
            return False
        layer = re.match(r".*?\.\d+\.", disk)
        for name, entry in self.model.tensors.items():
            if not name.endswith(".bias") or (layer and not name.startswith(layer[0])) or len(entry.shape) != 1:
                continue
            weight = self.model.tensors.get(f"{name.removesuffix('.bias')}.weight")
            if weight is not None and len(weight.shape) == 2 and weight.shape[0] != weight.shape[1]:
                return weight.shape[1] == entry.shape[0]
        return self.config.fan_in_fan_out


def _leaf(name: str) -> str:
    """'model.layers.0.q_proj.weight' -> 'q_proj'."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _is_vocabulary(name: str) -> bool:
    """Whether a tensor is a token embedding or a head."""
    return bool(TOKEN_MATRIX.search(name)) or (_leaf(name) in HEADS and name.endswith(".weight"))
