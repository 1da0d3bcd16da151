"""A mergekit configuration -> a recipe's text for the same merge, or every reason why no recipe says that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amatax.errors import Fault, RecipeError
from amatax.methods import method_needs
from amatax.recipes.loading import parse_recipe
from amatax.recipes.mergekit_config import Mergekit, parse_mergekit
from amatax.recipes.mergekit_methods import Pair, notes_on
from amatax.recipes.mergekit_parameters import filters
from amatax.recipes.mergekit_ratios import MOST_FILTERS, Tensor, kinds, write_ratios
from amatax.recipes.mergekit_table import Known, all_places, blend_all, choose_pair, count_layers, read_values
from amatax.recipes.schema import Recipe, is_folder


@dataclass
class Imported:
    """A recipe's text, what it says, and where it is not quite mergekit's merge."""

    text: str
    recipe: Recipe
    notes: list[str] = field(default_factory=list)


def local_models(config: Mergekit) -> list[str]:
    """The models that are folders here."""
    found = [name.partition("@")[0] for name in config.models]
    return [path for path in found if Path(path).is_dir()]


def to_recipe(
    config: Mergekit, known: Known, target: Path, *, sft: str | None = None, rlhf: str | None = None
) -> Imported:
    """The recipe for a configuration's merge.

    Args:
        config: as `parse_mergekit` reads it.
        known: of its models.
        target: where the recipe will stand: its folders are relative to that.
        sft, rlhf: names of models; otherwise the first is SFT and the second RLHF.

    Raises:
        RecipeError: with every reason why no recipe says that.
    """
    layers = count_layers(config, known)
    wanted = filters(config.scopes)
    if len(wanted) > MOST_FILTERS and known.tensors is None:
        message = f"{len(wanted)} filters, and the names of the model's tensors are not known"
        hint = f"have the model in a folder, or write at most {MOST_FILTERS}"
        raise RecipeError([Fault(message, config.where("parameters"), hint)])
    table = read_values(config, kinds(wanted, all_places(layers), known.tensors), layers)
    pair = choose_pair(config, table, sft, rlhf)
    method, blends = blend_all(config, pair, table)
    ratios, faults = write_ratios(
        {fits: {p: b.ratio for p, b in by_place.items()} for fits, by_place in blends.items()},
        wanted,
        layers,
        known.tensors,
        config.where("parameters"),
    )
    options = {name: value for by_place in blends.values() for b in by_place.values() for name, value in b.options}
    merge: dict[str, Any] = {"method": method}
    merge |= {name: value if isinstance(value, bool) else float(value) for name, value in options.items()}
    if method in ("dare", "dare_ties", "della"):
        merge["seed"] = 0
    if any(not 0 <= b.ratio <= 1 for by_place in blends.values() for b in by_place.values()):
        merge["extrapolate"] = True
    models, output = _roles(config, pair, method, target, faults)
    if faults:
        raise RecipeError(faults)
    notes = [*config.notes, *notes_on(config.method, pair, options, config.dtype), *_side_notes(config, output, known)]
    data = {"models": models, "merge": {**merge, "ratios": ratios}, **({"output": output} if output else {})}
    heading = (
        f"# Imported from {Path(config.origin.file).name}, a mergekit configuration of the method {config.method}.\n"
    )
    text = heading + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return Imported(text, parse_recipe(text, target.name, target.resolve().parent), notes)


def _roles(
    config: Mergekit, pair: Pair, method: str, target: Path, faults: list[Fault]
) -> tuple[dict[str, str | dict[str, str]], dict[str, str]]:
    """`models` and `output`: config.json and tokenizer are those of mergekit's base, if it has one."""
    by_name = {pair.sft: "sft", pair.rlhf: "rlhf"}
    if config.base is not None:
        by_name.setdefault(config.base, "base")
    output = {}
    if dtype := config.out_dtype or config.dtype:
        output["dtype"] = dtype
    source = config.base if config.tokenizer in (None, "base") else config.tokenizer
    if source is not None and source not in by_name:
        message = f"the tokenizer of {source!r}, which is not merged: a recipe copies that of sft, rlhf or base"
        hint = "leave it out, and copy its files into the merged folder"
        faults.append(Fault(message, config.where("tokenizer_source"), hint))
    for key, model in (("tokenizer", source), ("config", config.base)):
        if by_name.get(model or "", "sft") != "sft":
            output[key] = by_name[model or ""]
    models = {"sft": pair.sft, "rlhf": pair.rlhf}
    if config.base is not None and ("base" in method_needs(method) or "base" in output.values()):
        models = {"base": config.base, **models}
    return {role: _model(config, model, target, faults) for role, model in models.items()}, output


def _model(config: Mergekit, model: str, target: Path, faults: list[Fault]) -> str | dict[str, str]:
    """A model, or a model and the LoRA adapter on it (`model+adapter`), as a recipe names them."""
    own, plus, adapter = model.partition("+")
    if not plus:
        return _reference(config, own, target, faults)
    return {"model": _reference(config, own, target, faults), "adapter": _reference(config, adapter, target, faults)}


def _reference(config: Mergekit, model: str, target: Path, faults: list[Fault]) -> str:
    """A folder or Hub id. In mergekit folders are relative to the working directory, in a recipe to its file."""
    path = model.partition("@")[0]
    if is_folder(path) or Path(path).is_dir():
        if path.startswith(("/", "~")):
            return path
        relative = os.path.relpath(Path(path).resolve(), target.resolve().parent)
        return relative if relative.startswith("..") else f"./{relative}"
    if path.count("/") > 1 or " " in path or not path:
        message = f"{model!r} is neither a folder here nor a Hub id"
        faults.append(
            Fault(message, config.where("models"), "as in mergekit, folders are relative to the working directory")
        )
    return model


def _side_notes(config: Mergekit, output: Mapping[str, str], known: Known) -> Iterable[str]:
    """What is not the arithmetic."""
    if config.base is None:
        yield "config.json and tokenizer: SFT's here, of any one of the models in mergekit"
    elif output.get("tokenizer", "sft") == "base" and config.tokenizer is None:
        yield "tokenizer and chat template are the base's, as in mergekit; `tokenizer: sft` under `output` takes SFT's"
    if config.tokenizer is not None:
        yield "tokenizer: mergekit puts rows of embeddings into its order and cuts those beyond it; here rows stay: the same for one tokenizer"
    if not config.dtype and not config.out_dtype:
        yield "dtype: each tensor keeps SFT's here, the widest of the inputs' in mergekit"
    if "int8_mask" in {name for scope in config.scopes for name in scope.settings}:
        yield "`int8_mask` saves memory in mergekit and changes no number: left out"
    if config.method == "task_arithmetic" and "density" in {n for scope in config.scopes for n in scope.settings}:
        yield "task_arithmetic in mergekit drops nothing: its `density` has no effect there, nor here"
    if known.tensors and any(t.kind == "other" for t in known.tensors.values()):
        yield "tensors outside the backbone (vision towers, extra heads) take the ratio of the last slice; see the plan"


class _Dumper(yaml.SafeDumper):
    """Blocks and overrides in one line each, lists of them below each other."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, flow_style="ratio" in mapping)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = all(isinstance(item, float) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


__all__ = ["Imported", "Known", "Mergekit", "Tensor", "local_models", "parse_mergekit", "to_recipe"]
