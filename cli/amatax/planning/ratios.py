"""Recipe ratios x places -> the ratio of every tensor, or every fault in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from fractions import Fraction

from amatax.errors import Fault
from amatax.planning.names import Anatomy, Place, is_token_embedding
from amatax.recipes.schema import Block, Ratios, Recipe, parse_layers


@dataclass(frozen=True)
class PlannedBlock:
    """Layers that share their ratios. `attention` and `mlp` are equal unless the recipe tells them apart."""

    layers: range
    attention: float
    mlp: float

    @property
    def rest(self) -> float:
        """The ratio of what is neither attention nor MLP."""
        return _mean((self.attention, self.mlp))


def even_split(layers: int, blocks: int) -> list[range]:
    """Block k holds layers floor(k*L/K) to floor((k+1)*L/K)-1: 26 layers in 3 are 8, 9 and 9 (AMA, Section 5)."""
    return [range(k * layers // blocks, (k + 1) * layers // blocks) for k in range(blocks)]


def mean_ratio(ratios: Ratios) -> float:
    """The unweighted mean over the blocks' ratios; attention and MLP given apart are two ratios.

    In decimal, as they are written: the mean of 0.7, 0.4 and 0.1 is 0.4, not 0.39999999999999997.
    """
    numbers = [r for block in ratios.blocks for r in (block.ratios() if isinstance(block, Block) else (block,))]
    return _mean(numbers)


def plan_blocks(recipe: Recipe, ratios: Ratios, layers: int) -> tuple[list[PlannedBlock], list[Fault]]:
    """The blocks of a model of that many layers."""
    at: tuple[str | int, ...] = ("merge", "ratios", "blocks")
    written = [block for block in ratios.blocks if isinstance(block, Block)]
    even = [
        float(ratio) for ratio in ratios.blocks if not isinstance(ratio, Block)
    ]  # a recipe has the ones or the others
    if even:
        if len(even) > layers > 0:
            message = f"{len(even)} ratios for a model of {layers} layers"
            return [], [Fault(message, recipe.where(*at), "a block has at least one layer: give fewer ratios")]
        return [PlannedBlock(s, r, r) for s, r in zip(even_split(layers, len(even)), even, strict=True)], []

    blocks, faults = [], []
    owner: dict[int, int] = {}
    for i, block in enumerate(written):
        span = parse_layers(block.layers)
        if span.stop > layers:
            message = f"layers {block.layers} of a model whose layers are 0-{layers - 1}"
            faults.append(Fault(message, recipe.where(*at, i, "layers"), "layers are zero-based, ranges inclusive"))
            continue
        if doubled := [layer for layer in span if layer in owner]:
            message = f"layer {doubled[0]} is in blocks {owner[doubled[0]]} and {i}"
            faults.append(Fault(message, recipe.where(*at, i, "layers"), "the ranges cover every layer exactly once"))
        owner.update(dict.fromkeys(span, i))
        own = block.ratios()
        blocks.append(PlannedBlock(span, own[0], own[-1]))
    missing = [layer for layer in range(layers) if layer not in owner]
    if missing and not faults:
        message = f"no block holds {'layer' if len(missing) == 1 else 'layers'} {_ranges(missing)}"
        faults.append(Fault(message, recipe.where(*at), "the ranges cover every layer exactly once"))
    return sorted(blocks, key=lambda block: block.layers.start), faults


def tensor_ratios(
    recipe: Recipe, ratios: Ratios, model: Anatomy, blocks: list[PlannedBlock], tied: bool
) -> tuple[dict[str, float], list[Fault]]:
    """The ratio of every tensor: overrides first, then the block or the kind."""
    mean = mean_ratio(ratios)
    of_layer = {layer: block for block in blocks for layer in block.layers}
    outside = {
        "head": ratios.head,
        "embedding": ratios.embeddings,
        "norm": "mean" if ratios.norms == "block" else ratios.norms,
    }

    def by_rule(name: str, place: Place) -> float:
        if place.layer is None:
            kind = "head" if tied and is_token_embedding(name, place) else place.kind
            wish = outside.get(kind, ratios.other)
            return mean if wish == "mean" else float(wish)
        block = of_layer[place.layer]
        if place.kind == "norm" and ratios.norms != "block":
            return mean if ratios.norms == "mean" else float(ratios.norms)
        return block.attention if place.kind == "attention" else block.mlp if place.kind == "mlp" else block.rest

    overrides = [
        (re.compile(translate(o.match or "*")), parse_layers(o.layers) if o.layers is not None else None, o.ratio)
        for o in ratios.overrides
    ]
    used = [False] * len(overrides)
    result = {}
    for name, place in model.places.items():
        hits = [
            i
            for i, (glob, span, _) in enumerate(overrides)
            if (span is None or place.layer in span) and glob.match(name)
        ]
        for i in hits:
            used[i] = True
        result[name] = overrides[hits[0]][2] if hits else by_rule(name, place)
    faults = []
    for i, hit in enumerate(used):
        if not hit:
            override = ratios.overrides[i]
            what = f"{override.match or '*'!r}" + (
                f" in layers {override.layers}" if override.layers is not None else ""
            )
            hint = "`amatax inspect FOLDER --names` lists the names"
            faults.append(Fault(f"{what} matches no tensor", recipe.where("merge", "ratios", "overrides", i), hint))
    return result, faults


def _mean(numbers: Sequence[float]) -> float:
    """In decimal, as the numbers are written."""
    return float(sum(Fraction(repr(n)) for n in numbers) / len(numbers))


def _ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
