"""A recipe's text with numbers filled in: the rest, comments included, stays as it was written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from amatax.errors import RecipeError
from amatax.recipes.loading import dump_recipe, parse_recipe
from amatax.recipes.schema import Block, Ratios, Recipe, is_folder

OUTSIDE = ("head", "embeddings", "norms", "other")
Edit = tuple[int, int, str]  # (first character, last + 1, what stands there instead)


def fill_in(
    text: str,
    recipe: Recipe,
    ratios: Ratios,
    record: dict[str, Any],
    source: Path | None,
    target: Path,
    key: str = "fit",
) -> str:
    """The recipe's text with `merge.ratios` set and `record.fit` added.

    Args:
        text: as it was written; empty if the recipe came from Python.
        recipe: what the text says, its folders absolute.
        ratios: what was fitted.
        record: how.
        source: the file the text stands in.
        target: the file it will stand in; model folders and data files are made relative to that.
        key: of the record: `fit`, or `sweep`.

    Returns:
        Text that parses to the recipe with these ratios.
    """
    wanted = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"ratios": ratios})})
    filled = _edit(text, recipe, ratios, {key: record}, source, target) if text else ""
    if filled:
        try:
            parsed = parse_recipe(filled, str(target), target.resolve().parent)
        except RecipeError:
            parsed = None
        if parsed is not None and (parsed.models, parsed.merge.resolved_ratios(), parsed.output) == (
            wanted.models,
            ratios,
            wanted.output,
        ):
            return filled
    # unusual text (anchors, several documents): written anew, without its comments
    fit, measures = recipe.fit, dict(recipe.measures)
    if source is not None:
        folder = source.resolve().parent
        if fit is not None:
            paths = {k: v for k in ("data", "prompts", "holdout") if isinstance(v := getattr(fit, k), str)}
            fit = fit.model_copy(update={k: str((folder / v).resolve()) for k, v in paths.items()})
        for name, measure in measures.items():
            model = (measure.model_extra or {}).get("model")
            named = {"data": measure.data, "model": model if isinstance(model, str) and is_folder(model) else None}
            moved = {k: str((folder / v).resolve()) for k, v in named.items() if v and not v.startswith("~")}
            measures[name] = measure.model_copy(update=moved)
    update = {"record": {**recipe.record, key: record}, "fit": fit, "measures": measures}
    return dump_recipe(wanted.model_copy(update=update))


def _edit(text: str, recipe: Recipe, ratios: Ratios, record: dict[str, Any], source: Path | None, target: Path) -> str:
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return ""
    edits: list[Edit] = []
    merge = _value(root, "merge")
    if merge is None:
        text = f"{text.rstrip()}\n\nmerge:\n  ratios: {_long(ratios)}\n"
    elif not isinstance(merge[1], yaml.MappingNode):
        edits.append(_replace(merge, f"{{ratios: {_long(ratios)}}}"))
    elif (written := _value(merge[1], "ratios")) is None:
        edits.append(_insert_first(merge[1], f"ratios: {_long(ratios)}"))
    elif isinstance(written[1], yaml.MappingNode):
        for key, value in _changed(recipe.merge.resolved_ratios(), ratios).items():
            found = _value(written[1], key)
            in_place = _item_by_item(found, ratios) if found and key == "blocks" else []
            edits += in_place or [_replace(found, value) if found else _insert_first(written[1], f"{key}: {value}")]
    else:
        in_place = _item_by_item(written, ratios) if not _long(ratios).startswith("{") else []
        edits += in_place or [_replace(written, _long(ratios))]
    if source is not None and source.resolve().parent != target.resolve().parent:
        edits += _moved_paths(root, source, target)
    if (old := _value(root, "record")) is not None:
        flow = yaml.safe_dump({**recipe.record, **record}, default_flow_style=True, sort_keys=False, width=10**6)
        edits.append(_replace(old, flow.strip()))
    for begin, end, new in sorted(set(edits), reverse=True):
        text = text[:begin] + new + text[end:]
    if old is None:
        lines = yaml.safe_dump({"record": record}, sort_keys=False, width=120, allow_unicode=True)
        text = f"{text.rstrip()}\n\n{lines}"
    return text


def _value(node: yaml.MappingNode, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """(key, value) of a mapping."""
    return next(((k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == key), None)


def _replace(item: tuple[yaml.Node, yaml.Node], new: str) -> Edit:
    return item[0].end_mark.index, _end(item[1]), f": {new}"


def _item_by_item(item: tuple[yaml.Node, yaml.Node], ratios: Ratios) -> list[Edit]:
    """New numbers in a list of as many: the comments between them stay. Nothing for another list."""
    node = item[1]
    if not isinstance(node, yaml.SequenceNode) or len(node.value) != len(ratios.blocks):
        return []
    found = []
    for one, ratio in zip(node.value, ratios.blocks, strict=True):
        if not isinstance(one, yaml.ScalarNode) or isinstance(ratio, Block):
            return []
        found.append((one.start_mark.index, one.end_mark.index, _number(ratio)))
    return found


def _insert_first(mapping: yaml.MappingNode, new: str) -> Edit:
    """Before the mapping's first key."""
    if mapping.flow_style or not mapping.value:
        at = mapping.start_mark.index + 1
        return at, at, f"{new}, " if mapping.value else new
    first = mapping.value[0][0].start_mark
    return first.index, first.index, f"{new}\n{' ' * first.column}"


def _end(node: yaml.Node) -> int:
    """Where a value's text ends; a block's own end mark lies behind the comments that follow it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


def _moved_paths(root: yaml.MappingNode, source: Path, target: Path) -> list[Edit]:
    """Folders and data files that are relative to the recipe, as they read from the new place."""
    edits = []
    models, fit, measures = (_value(root, key) for key in ("models", "fit", "measures"))
    named, measured = (
        [v for _, v in item[1].value] if item and isinstance(item[1], yaml.MappingNode) else []
        for item in (models, measures)
    )
    parts = [[v for _, v in node.value] if isinstance(node, yaml.MappingNode) else [node] for node in named]
    found = [(node, True) for nodes in parts for node in nodes]  # of {model, adapter} both
    if fit and isinstance(fit[1], yaml.MappingNode):
        found += [(item[1], False) for key in ("data", "prompts", "holdout") if (item := _value(fit[1], key))]
    for measure in (node for node in measured if isinstance(node, yaml.MappingNode)):
        found += [(item[1], key == "model") for key in ("data", "model") if (item := _value(measure, key))]
    for node, is_model in found:
        path = str(node.value)
        if not isinstance(node, yaml.ScalarNode) or path.startswith(("/", "~")) or (is_model and not is_folder(path)):
            continue
        if node.tag != "tag:yaml.org,2002:str":
            continue  # a holdout share
        moved = os.path.relpath(source.resolve().parent / path, target.resolve().parent)
        if moved.count("../") > 3:
            moved = str((source.resolve().parent / path).resolve())
        elif is_model and not moved.startswith("."):
            moved = f"./{moved}"
        edits.append((node.start_mark.index, node.end_mark.index, json.dumps(moved, ensure_ascii=False)))
    return edits


def _changed(before: Ratios | None, after: Ratios) -> dict[str, str]:
    """The blocks, and the keys of a long form that are others than before, as YAML."""
    changed = {key: _kind(getattr(after, key)) for key in OUTSIDE if getattr(before, key, None) != getattr(after, key)}
    return {"blocks": _blocks(after), **changed}


def _blocks(ratios: Ratios) -> str:
    parts = []
    for block in ratios.blocks:
        if isinstance(block, Block):
            ratios_of = {k: v for k in ("ratio", "attention", "mlp") if (v := getattr(block, k)) is not None}
            shown = [f"layers: {block.layers}", *(f"{key}: {_number(value)}" for key, value in ratios_of.items())]
            parts.append(f"{{{', '.join(shown)}}}")
        else:
            parts.append(_number(block))
    return f"[{', '.join(parts)}]"


def _number(value: float) -> str:
    """Without an exponent, which YAML takes for text if it has no dot."""
    return repr(value) if "e" not in repr(value) else f"{value:.12f}"


def _kind(value: float | str) -> str:
    return value if isinstance(value, str) else _number(value)


def _long(ratios: Ratios) -> str:
    """A bare list, unless more has to be said, such as a free head."""
    default = Ratios(blocks=ratios.blocks)
    said = [f"{key}: {_kind(getattr(ratios, key))}" for key in OUTSIDE if getattr(ratios, key) != getattr(default, key)]
    return f"{{{', '.join([f'blocks: {_blocks(ratios)}', *said])}}}" if said else _blocks(ratios)
