"""The ratio that each kind of tensor has at each place of the model, as `merge.ratios` says it: blocks and overrides.

mergekit tells tensors apart by the filters that their names fit, and by where they stand: before the layers (the first slice's settings,
gradients at their beginning), in a layer, or after the layers (the last slice's, gradients at their beginning too).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

from amatax.errors import Fault

BEFORE, AFTER = -1, -2  # places outside the layers
MOST_FILTERS = 8  # of a model whose names are not known: everything that they can fit together is looked at
Fitting = frozenset[str]  # the filters that a tensor's name fits
ByPlace = Mapping[int, Fraction]


class Tensor(NamedTuple):
    """Where a tensor of the model stands, if that is known."""

    layer: int | None
    kind: str  # as in amatax.planning.names


def place(tensor: Tensor) -> int:
    """A layer, or before or after them: embeddings stand before."""
    if tensor.layer is not None:
        return tensor.layer
    return BEFORE if tensor.kind == "embedding" else AFTER


def kinds(
    filters: Sequence[str], places: Iterable[int], tensors: Mapping[str, Tensor] | None
) -> dict[Fitting, list[int]]:
    """Which filters a name can fit together, and where: of a known model what there is, else everything that can be."""
    found: dict[Fitting, list[int]] = {}
    if tensors is not None:
        for name, tensor in tensors.items():
            here = found.setdefault(fitting(name, filters), [])
            if place(tensor) not in here:
                here.append(place(tensor))
        return found
    for flags in product((False, True), repeat=len(filters)):
        fits = frozenset(f for f, flag in zip(filters, flags, strict=True) if flag)
        if all(inner in fits for outer in fits for inner in filters if inner in outer):  # what fits mlp.up fits mlp
            found[fits] = list(places)
    return found


def fitting(name: str, filters: Iterable[str]) -> Fitting:
    """The filters that a name fits."""
    return frozenset(f for f in filters if f in name)


def write_ratios(
    table: Mapping[Fitting, ByPlace],
    filters: Sequence[str],
    layers: int | None,
    tensors: Mapping[str, Tensor] | None,
    where: str,
) -> tuple[Any, list[Fault]]:
    """`merge.ratios`, from the ratio of every kind of tensor at every place; with the faults that make it impossible.

    Args:
        table: kind -> place -> ratio.
        filters: in the order of the file.
        layers: how many there are; None if nothing hangs on that.
        tensors: of a known model, by name.
        where: of the faults.
    """
    all_ratios = {ratio for by_place in table.values() for ratio in by_place.values()}
    if len(all_ratios) == 1 and (layers is None or tensors is not None):
        return float(all_ratios.pop()), []
    inside = table
    if tensors is not None:  # what stands outside the layers is named one by one
        inside = {fits: {p: r for p, r in by_place.items() if p >= 0} for fits, by_place in table.items()}
    rules = decide({fits: by_place for fits, by_place in inside.items() if by_place}, filters)
    if rules is None:
        message = f"the filters {', '.join(map(repr, filters))} overlap in another order for each parameter"
        return None, [Fault(message, where, "write the same filters in the same order under every model")]
    overrides, faults = [], []
    for wanted, by_place in rules[:-1]:
        if tensors is None and by_place[BEFORE] != by_place[AFTER]:
            message = f"{wanted!r} has another value before the layers than after them, and where what it fits stands is not known"
            faults.append(Fault(message, where, "have the model in a folder: its tensors' names tell"))
        overrides += _filtered(str(wanted), by_place)
    everything = rules[-1][1]
    default = {p: r for p, r in everything.items() if p >= 0}
    ratios: dict[str, Any] = {}
    if tensors is None:
        after = everything[AFTER]
        ratios["blocks"] = [{"layers": _span(0, layers - 1), "ratio": float(after)}] if layers else [float(after)]
        if everything[BEFORE] != after:
            ratios["embeddings"] = float(everything[BEFORE])
        overrides += [run for run in _runs(default) if run["ratio"] != float(after)]
    else:
        runs = _runs(_filled(default, layers or 0))
        ratios["blocks"] = runs if len(runs) > 1 else [runs[0]["ratio"]]
        outside = {n: float(table[fitting(n, filters)][place(t)]) for n, t in tensors.items() if t.layer is None}
        beside = [ratio for name, ratio in outside.items() if tensors[name].kind == "other"]
        mean = _mean([run["ratio"] for run in runs])
        if beside and beside[0] != mean:
            ratios["other"] = beside[0]
        given = {name: ratios.get("other", mean) if tensors[name].kind == "other" else mean for name in outside}
        for wanted, by_place in reversed(rules[:-1]):
            if len(set(by_place.values())) == 1:  # an override without layers
                given |= {name: float(next(iter(by_place.values()))) for name in outside if str(wanted) in name}
        named = [{"match": _glob(n), "ratio": ratio} for n, ratio in outside.items() if given[n] != ratio]
        overrides = [*named, *overrides]
    return {**ratios, **({"overrides": overrides} if overrides else {})}, faults


def decide(table: Mapping[Fitting, ByPlace], filters: Sequence[str]) -> list[tuple[str | None, ByPlace]] | None:
    """A list of (filter, ratio by place), the first that fits decides, the last is for all the others; None if there is none.

    A filter comes next when all kinds that fit it agree (Rivest 1987: if there is such a list, taking any of them finds one).
    """
    left, found = dict(table), list[tuple[str | None, ByPlace]]()
    while (rest := _agreed(left.values())) is None:
        for wanted in filters:
            having = [by_place for fits, by_place in left.items() if wanted in fits]
            if having and (agreed := _agreed(having)) is not None:
                found.append((wanted, agreed))
                left = {fits: by_place for fits, by_place in left.items() if wanted not in fits}
                break
        else:
            return None
    return [*found, (None, rest)]


def _agreed(all_of: Iterable[ByPlace]) -> ByPlace | None:
    found: dict[int, Fraction] = {}
    for by_place in all_of:
        for p, ratio in by_place.items():
            if found.setdefault(p, ratio) != ratio:
                return None
    return found


def _filtered(wanted: str, by_place: ByPlace) -> list[dict[str, Any]]:
    """Overrides for a filter: one if its ratio is the same everywhere, else by layers, and then for what stands outside."""
    glob = f"*{_glob(wanted)}*"
    if len(set(by_place.values())) == 1:
        return [{"match": glob, "ratio": float(next(iter(by_place.values())))}]
    found = [{"match": glob, **run} for run in _runs({p: r for p, r in by_place.items() if p >= 0})]
    if AFTER in by_place:
        found.append({"match": glob, "ratio": float(by_place[AFTER])})
    return found


def _glob(text: str) -> str:
    """Of this text alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _filled(by_layer: ByPlace, layers: int) -> ByPlace:
    """With a ratio for every layer: where no tensor asks for one, that of a neighbour."""
    found, last = {}, next((by_layer[p] for p in sorted(by_layer)), Fraction(0))
    for layer in range(layers):
        last = by_layer.get(layer, last)
        found[layer] = last
    return found


def _runs(by_layer: ByPlace) -> list[dict[str, Any]]:
    """Layers in a row with one ratio; those that have none in between go with them."""
    found: list[tuple[int, int, Fraction]] = []
    for layer in sorted(by_layer):
        if found and found[-1][2] == by_layer[layer]:
            found[-1] = (found[-1][0], layer, by_layer[layer])
        else:
            found.append((layer, layer, by_layer[layer]))
    return [{"layers": _span(first, last), "ratio": float(ratio)} for first, last, ratio in found]


def _span(first: int, last: int) -> int | str:
    return first if first == last else f"{first}-{last}"


def _mean(numbers: Sequence[float]) -> float:
    """As the plan takes it: in decimal, over the blocks."""
    return float(sum(Fraction(repr(n)) for n in numbers) / len(numbers))
