"""A mergekit configuration -> a recipe's text for the same merge, or every reason why no recipe says that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from amatax.errors import Fault, RecipeError
from amatax.methods import method_needs
from amatax.recipes.loading import parse_recipe
from amatax.recipes.mergekit_config import Mergekit, Slice, parse_mergekit
from amatax.recipes.mergekit_methods import Blend, Pair, Unsayable, blend, method_of, notes_on
from amatax.recipes.mergekit_parameters import METHODS, Value, filters, has_gradient, look_up
from amatax.recipes.mergekit_ratios import AFTER, BEFORE, Fitting, Tensor, kinds, write_ratios
from amatax.recipes.schema import Recipe, is_folder

WITHOUT_BASE = ("linear", "slerp")  # their base is no origin of changes
BOTH_HINT = "a ratio is the share of one model against one other: merge two of them, then the result with the third"


@dataclass(frozen=True)
class Known:
    """What is known of the models: the place of every tensor by name, if one of them is at hand, and how many layers there are."""

    tensors: Mapping[str, Tensor] | None = None
    layers: int | None = None
    stacks: int = 1  # an encoder and a decoder are two


@dataclass
class Imported:
    """A recipe's text, what it says, and where it is not quite mergekit's merge."""

    text: str
    recipe: Recipe
    notes: list[str] = field(default_factory=list)


class Values(NamedTuple):
    """Of a kind of tensor at a place: the parameters that are looked up once, and by model."""

    shared: dict[str, Value]
    each: dict[str, dict[str, Value]]


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
    layers = _layers(config, known)
    wanted = filters(config.scopes)
    table = _values(config, kinds(wanted, _places(config, layers), known.tensors), layers)
    pair = _pair(config, table, sft, rlhf)
    blends, method = _blends(config, pair, table)
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
    return Imported(text, parse_recipe(text, target.name, target.parent), notes)


def _layers(config: Mergekit, known: Known) -> int | None:
    """How many there are; None if nothing hangs on that."""
    sliced = config.slices[-1].layers
    gradient = has_gradient(config.scopes)
    if sliced is not None and known.layers is not None and known.layers != sliced.stop:
        message = (
            f"the slices hold layers 0 to {sliced.stop - 1}, the model has {known.layers}: a recipe keeps them all"
        )
        raise RecipeError([Fault(message, config.where("slices"), "leaving out layers is mergekit's alone")])
    if known.stacks > 1 and (gradient is not None or len(config.slices) > 1):
        message = "encoder and decoder each have their own layers in mergekit, and blocks of their own in a recipe"
        raise RecipeError([Fault(message, config.where("merge_method"), "write the recipe's `blocks` by hand")])
    if sliced is None and known.layers is None and gradient is not None:
        message = "a gradient runs over the layers, and how many the model has is not known"
        raise RecipeError([Fault(message, config.where(*gradient.at), "say it: --layers 32")])
    return sliced.stop if sliced is not None else known.layers


def _places(config: Mergekit, layers: int | None) -> list[int]:
    return [BEFORE, AFTER, *range(layers or 0)]


def _stand(config: Mergekit, place: int, layers: int | None) -> tuple[Slice, Fraction]:
    """A place's slice, and how far into it the place is."""
    if place < 0:
        return config.slices[0 if place == BEFORE else -1], Fraction(0)
    for part in config.slices:
        span = part.layers or range(layers or place + 1)
        if place in span:
            return part, Fraction(place - span.start, len(span) - 1) if len(span) > 1 else Fraction(1)
    raise AssertionError(place)


def _values(
    config: Mergekit, places: Mapping[Fitting, list[int]], layers: int | None
) -> dict[Fitting, dict[int, Values]]:
    """Every parameter of every kind of tensor at every place.

    Raises:
        RecipeError: if one that must be given is not.
    """
    known = METHODS[config.method]
    missing: dict[str, Fault] = {}

    def value(name: str, model: str | None, default: Value | None, place: int, fits: Fitting) -> Value:
        part, t = _stand(config, place, layers)
        found = look_up(name, part.scopes(model, config.top), t, fits)
        if found is None and default is None:
            of = f" for {model!r}" if model else ""
            which = f"tensors that fit {', '.join(sorted(fits))}" if fits else "tensors that fit no filter"
            message = f"no `{name}`{of} for {which if filters(config.scopes) else 'the tensors'}"
            where = config.where(*(part.models[model].at if model else ("merge_method",)))
            missing[message] = Fault(message, where, "mergekit refuses this too")
            return Fraction(1)
        return found if found is not None else default  # type: ignore[return-value]

    table: dict[Fitting, dict[int, Values]] = {}
    for fits, where in places.items():
        table[fits] = {}
        for p in where:
            part, _ = _stand(config, p, layers)
            own = [m for m in part.models if config.method in WITHOUT_BASE or m != config.base]
            table[fits][p] = Values(
                {name: value(name, None, default, p, fits) for name, default in known.shared.items()},
                {m: {name: value(name, m, default, p, fits) for name, default in known.each.items()} for m in own},
            )
    if missing:
        raise RecipeError(list(missing.values()))
    return table


def _pair(config: Mergekit, table: Mapping[Fitting, Mapping[int, Values]], sft: str | None, rlhf: str | None) -> Pair:
    """Which two models the ratios lie between.

    Raises:
        RecipeError: if there are not two, or the method's base is missing.
    """
    faults = []
    listed = [m for m in config.models if config.method in WITHOUT_BASE or m != config.base]
    if config.method != "linear":
        if config.base is None:
            faults.append(Fault("`base_model` is needed", config.where("merge_method"), "mergekit refuses this too"))
        for part in config.slices:
            if config.base is not None and config.base not in part.models:
                message = f"the base {config.base!r} is not among the slice's sources"
                faults.append(Fault(message, config.where(*part.at), "mergekit refuses this too: add it"))
    if config.method == "slerp":
        for part in config.slices:
            if len(part.models) != 2:
                message = f"slerp is between two models, the base and one other, not {len(part.models)}"
                faults.append(Fault(message, config.where(*part.at), "mergekit refuses this too"))
        if config.base in listed and config.slices[0].models.get(config.base, config.top).at == ("base_model",):
            listed.sort(key=lambda model: model != config.base)  # not listed: it comes first, at t = 0
    elif len(listed) > 2:
        every = [v.each for by_place in table.values() for v in by_place.values()]
        listed = [m for m in listed if any(each.get(m, {}).get("weight") for each in every)]
    if len(listed) > 2 and config.method != "slerp":
        message = f"{len(listed)} models are merged ({', '.join(listed)}), and a recipe merges two"
        faults.append(
            Fault(message, config.where("models" if config.slices[0].layers is None else "slices"), BOTH_HINT)
        )
    if len(listed) == 1 and config.method != "linear" and config.base is not None:
        listed, alone = [config.base, *listed], True
    else:
        alone = False
        if len(listed) < 2 and not faults:
            message = f"{len(listed)} model to merge" if listed else "no model to merge"
            faults.append(Fault(message, config.where("merge_method"), "a recipe merges two"))
    for option, name in (("--sft", sft), ("--rlhf", rlhf)):
        if name is not None and name not in listed:
            faults.append(Fault(f"{option} {name}: no such model here", "", f"there are {', '.join(listed)}"))
    if sft is not None and sft == rlhf:
        faults.append(Fault(f"--sft and --rlhf are both {sft}", "", f"there are {', '.join(listed)}"))
    if alone and not faults and (sft or listed[0], rlhf or listed[1]) != tuple(listed):
        message = "with one tuned model the base is what the ratios begin at"
        faults.append(Fault(message, "", f"leave out --sft and --rlhf: SFT is {listed[0]}, RLHF {listed[1]}"))
    if faults:
        raise RecipeError(faults)
    first = sft or next(model for model in listed if model != rlhf)
    return Pair(first, next(model for model in listed if model != first), alone)


def _blends(
    config: Mergekit, pair: Pair, table: Mapping[Fitting, Mapping[int, Values]]
) -> tuple[dict[Fitting, dict[int, Blend]], str]:
    """The share of RLHF and the options of every kind at every place, and the method.

    Raises:
        RecipeError: with everything that no recipe says, and in which layers.
    """
    found: dict[Fitting, dict[int, Blend]] = {}
    wrong: dict[tuple[str, str, str], list[int]] = {}
    for fits, by_place in table.items():
        found[fits] = {}
        for p, values in by_place.items():
            try:
                found[fits][p] = blend(config.method, pair, config.base, *values)
            except Unsayable as why:
                wrong.setdefault((why.parameter, why.message, why.hint), []).append(p)
    everywhere = {p for by_place in table.values() for p in by_place}
    faults = []
    for (parameter, message, hint), places in wrong.items():
        where = config.where("merge_method") if parameter == "merge_method" else config.written(parameter)
        faults.append(Fault(message + _in_places(set(places), everywhere), where, hint))
    if not faults:
        faults = list(_changing_options(config, found))
    if faults:
        raise RecipeError(faults)
    return found, method_of(config.method, pair)


def _changing_options(config: Mergekit, found: Mapping[Fitting, Mapping[int, Blend]]) -> Iterable[Fault]:
    """Options that differ from tensor to tensor: a recipe has one for all."""
    seen: dict[str, dict[Value, set[int]]] = {}
    for by_place in found.values():
        for p, b in by_place.items():
            for name, value in b.options:
                seen.setdefault(name, {}).setdefault(value, set()).add(p)
    for name, values in seen.items():
        if len(values) > 1:
            shown = [f"{float(v):g}{_in_places(places, set())}" for v, places in list(values.items())[:4]]
            more = ", ..." if len(values) > 4 else ""
            what = f"the {name}, which a recipe has once for all tensors, is {', '.join(shown)}{more}"
            weighted = name == "scale" and "lambda" not in {k for s in config.scopes for k in s.settings}
            parameter = {"scale": "weight" if weighted else "lambda"}.get(name, name)
            hint = f"give `{name}` one value"
            if name == "scale":
                hint = "let the weights have the same sum everywhere, or `normalize: true`, and one `lambda`"
            yield Fault(what, config.written(parameter), hint)


def _in_places(places: set[int], everywhere: set[int]) -> str:
    """' (layers 3-5, outside the layers)'; nothing if that is everywhere."""
    if places == everywhere:
        return ""
    spans: list[list[int]] = []
    for layer in sorted(p for p in places if p >= 0):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    inside = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
    named = [f"layer{'s' if '-' in inside or ',' in inside else ''} {inside}"] if inside else []
    return f" ({', '.join([*named, *(['outside the layers'] if min(places) < 0 else [])])})"


def _roles(
    config: Mergekit, pair: Pair, method: str, target: Path, faults: list[Fault]
) -> tuple[dict[str, str], dict[str, str]]:
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
    return {role: _reference(config, model, target, faults) for role, model in models.items()}, output


def _reference(config: Mergekit, model: str, target: Path, faults: list[Fault]) -> str:
    """A model as a recipe names it. In mergekit folders are relative to the working directory, in a recipe to its file."""
    path = model.partition("@")[0]
    if is_folder(path) or Path(path).is_dir():
        if path.startswith(("/", "~")):
            return path
        relative = os.path.relpath(Path(path).absolute(), target.parent.absolute())
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
