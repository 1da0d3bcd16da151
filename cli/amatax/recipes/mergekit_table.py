"""What every kind of tensor gets at every place of the model: mergekit's values, the two models between them, and their blend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from amatax.errors import Fault, RecipeError
from amatax.recipes.mergekit_config import Mergekit, Slice
from amatax.recipes.mergekit_methods import Blend, Pair, Unsayable, blend, method_of
from amatax.recipes.mergekit_parameters import METHODS, Value, filters, has_gradient, look_up
from amatax.recipes.mergekit_ratios import AFTER, BEFORE, Fitting, Tensor

WITHOUT_BASE = ("linear", "slerp")  # their base is no origin of changes
BOTH_HINT = "a ratio is the share of one model against one other: merge two of them, then the result with the third"


@dataclass(frozen=True)
class Known:
    """What is known of the models: the place of every tensor by name, if one of them is at hand, and how many layers there are."""

    tensors: Mapping[str, Tensor] | None = None
    layers: int | None = None
    stacks: int = 1  # an encoder and a decoder are two


class Values(NamedTuple):
    """Of a kind of tensor at a place: the parameters that are looked up once, and by model."""

    shared: dict[str, Value]
    each: dict[str, dict[str, Value]]


def count_layers(config: Mergekit, known: Known) -> int | None:
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


def all_places(layers: int | None) -> list[int]:
    """Before the layers, after them, and each of them."""
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


def read_values(
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
        found = default if found is None else found
        if found is None:
            of = f" for {model!r}" if model else ""
            which = f"tensors that fit {', '.join(sorted(fits))}" if fits else "tensors that fit no filter"
            message = f"no `{name}`{of} for {which if filters(config.scopes) else 'the tensors'}"
            where = config.where(*(part.models[model].at if model else ("merge_method",)))
            missing[message] = Fault(message, where, "mergekit refuses this too")
            return Fraction(1)
        return found

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


def choose_pair(
    config: Mergekit, table: Mapping[Fitting, Mapping[int, Values]], sft: str | None, rlhf: str | None
) -> Pair:
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
    elif len(listed) > 2 and "weight" in METHODS[config.method].each:
        every = [v.each for by_place in table.values() for v in by_place.values()]
        listed = [m for m in listed if any(each.get(m, {}).get("weight") for each in every)]
    if len(listed) > 2 and not (config.method == "slerp" and faults):
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


def blend_all(
    config: Mergekit, pair: Pair, table: Mapping[Fitting, Mapping[int, Values]]
) -> tuple[str, dict[Fitting, dict[int, Blend]]]:
    """The method, and the share of RLHF and the options of every kind at every place.

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
            except* Unsayable as group:
                for why in group.exceptions:
                    assert isinstance(why, Unsayable)
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
    return method_of(config.method, pair), found


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
