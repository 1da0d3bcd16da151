"""The chosen merge as a recipe: its ratios filled in, and a record of how it was chosen; comments stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amatax.errors import DataError
from amatax.evaluation.results import Point
from amatax.fitting.filling import OUTSIDE, fill_in
from amatax.planning.ratios import even_split, mean_ratio
from amatax.recipes.loading import parse_recipe
from amatax.recipes.schema import Block, Ratios

KEY = "sweep"  # of the recipe's record


def write_chosen(
    recipe_text: str, point: Point, record: dict[str, Any], source: Path, target: Path, layers: int = 0
) -> str:
    """The recipe's text with the point's ratios and `record.sweep`.

    Args:
        recipe_text: as it was written.
        point: whose ratios are taken, by group: `blocks.0` or `blocks.0.attention` and `blocks.0.mlp`, and `head`, `embeddings`,
            `norms`, `other`; a group that the point does not name stays as the recipe has it.
        record: `choice_record`.
        source: the file the text stands in.
        target: the file it will stand in; paths are made relative to that.
        layers: of the model, where blocks need their ranges and the recipe has not as many blocks.

    Raises:
        DataError: for ratios that no recipe can say.
        RecipeError: if the text is no recipe.
    """
    recipe = parse_recipe(recipe_text, str(source), source.resolve().parent)
    ratios = recipe_ratios(point, recipe.merge.resolved_ratios(), layers)
    return fill_in(recipe_text, recipe, ratios, record, source, target, KEY)


def recipe_ratios(point: Point, words: Ratios | None, layers: int = 0) -> Ratios:
    """A point's ratios as a recipe says them; `mean` and `block` stay where they say the same. See `write_chosen`."""
    blocks: dict[int, dict[str, float]] = {}
    outside: dict[str, float] = {}
    for name, ratio in point.ratios.items():
        head, *rest = name.split(".")
        if head == "blocks" and rest and rest[0].isdigit() and rest[1:] in ([], ["attention"], ["mlp"]):
            blocks.setdefault(int(rest[0]), {})[(rest[1:] or ["ratio"])[0]] = ratio
        elif name in OUTSIDE:
            outside[name] = ratio
        else:
            raise DataError(
                f"{point.name}: a recipe has no ratio for `{name}`", f"there are blocks, {', '.join(OUTSIDE)}"
            )
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise DataError(
            f"{point.name}: its blocks are {sorted(blocks)}, and not numbered from 0", "choose another point"
        )
    parts = [blocks[i] for i in range(len(blocks))]
    before = words if words is not None else Ratios(blocks=[0.5])
    spans = [block.layers for block in before.blocks if isinstance(block, Block)]
    apart = any("ratio" not in part for part in parts)
    if apart and len(spans) != len(parts):
        if layers < len(parts):
            raise DataError(
                f"{point.name}: the layers of its blocks are not known", "give the blocks with `layers` in the recipe"
            )
        spans = [f"{span.start}-{span.stop - 1}" for span in even_split(layers, len(parts))]
    if len(spans) == len(parts):
        found = before.model_copy(
            update={"blocks": [Block(layers=span, **part) for span, part in zip(spans, parts, strict=True)]}
        )
    else:
        found = before.model_copy(update={"blocks": [part["ratio"] for part in parts]})
    mean = mean_ratio(found)
    changes: dict[str, float] = {}
    for name, ratio in outside.items():
        word = getattr(found, name)
        same = {r for part in parts for r in part.values()} == {ratio} if word == "block" else mean == ratio
        if not (isinstance(word, str) and same):
            changes[name] = ratio
    return found.model_copy(update=changes)
