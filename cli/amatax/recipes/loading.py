"""YAML text -> Recipe, or every fault in it at once, each with file, line, key path and the nearest real key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from amatax.errors import Fault, RecipeError
from amatax.methods import check_options, method_names, method_needs, method_options, options_model
from amatax.recipes import schema
from amatax.recipes.schema import Block, Origin, Ratios, Recipe, expand_home, is_folder

Path_ = tuple[str | int, ...]
YAML_HINT = "look at that line; `amatax recipes quickstart` shows a recipe that works"
METHODS_HINT = "`amatax methods` lists every method's options"
SCHEMA_HINT = "`amatax schema` prints what a recipe may hold"
LEFT_OUT: dict[Path_, str] = {  # what there is not, on purpose
    ("models", "others"): "two tuned models are merged, no more: merge two, and what comes out with a third",
}
MOST_KEYS = 100_000  # of a recipe, aliases written out
MERGE_KEY = "tag:yaml.org,2002:merge"  # of `<<`


def load_recipe(source: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Read a recipe from a YAML file (or from a mapping, as if it stood in the working directory).

    Model folders come back absolute: they are relative to the recipe's file.

    Raises:
        RecipeError: with all faults of the text.
    """
    if isinstance(source, Mapping):
        try:
            text = yaml.safe_dump(_plain(source), sort_keys=False)
        except yaml.YAMLError as error:
            raise RecipeError([Fault(f"not what YAML can hold: {error}", "recipe", SCHEMA_HINT)]) from None
        return parse_recipe(text, "recipe", Path.cwd())
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Fault("no such recipe", str(path), "`amatax recipes` lists the ready ones")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Fault(f"cannot be read as text: {error}", str(path), "name a YAML file in UTF-8")]) from None
    return parse_recipe(text, str(path), path.resolve().parent)


def parse_recipe(text: str, file: str, folder: Path) -> Recipe:
    """Parse a recipe's text; `file` is for messages, `folder` is what model folders are relative to."""
    data, lines, faults = read_yaml(text, file)
    origin = Origin(file, lines)
    if not faults and not isinstance(data, dict):
        faults = [Fault("a recipe is a mapping with `models` and `merge`", file, "see `amatax recipes quickstart`")]
    elif not faults and "merge_method" in data:
        faults = [Fault("this is a mergekit configuration", file, f"`amatax import {file}` makes a recipe of it")]
    elif isinstance(data, dict):
        recipe = None
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            faults += schema_faults(error, origin)
        else:
            faults += _ratio_faults(recipe, origin)
        faults += _reference_faults(data.get("models"), origin)
        faults += _method_faults(data.get("merge", {}), data.get("models"), origin)
        if recipe is not None and not faults:
            models = recipe.models.renamed(lambda _, model: absolute(model, folder))
            recipe = recipe.model_copy(update={"models": models})
            recipe._origin = origin
            return recipe
    raise RecipeError(faults)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults written out; parsing it gives an equal recipe."""
    data = {key: value for key, value in recipe.model_dump(exclude_none=True).items() if value != {}}
    return yaml.safe_dump(data, sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    """A mapping from Python as YAML has it; a path is a folder, whatever it begins with."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(Path(value).absolute()) if isinstance(value, os.PathLike) else value


def absolute(model: str, folder: Path) -> str:
    """A model folder that is relative to a recipe's file; a Hub id stays."""
    return os.path.normpath(folder / expand_home(model)) if is_folder(model) else model


def read_yaml(text: str, file: str, hint: str = YAML_HINT) -> tuple[Any, dict[Path_, int], list[Fault]]:
    """The data, the line of every key, and the faults of the YAML itself (syntax, duplicate keys)."""
    lines: dict[Path_, int] = {}
    faults: list[Fault] = []
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, [Fault("the file is empty", file, hint)]
        for count, (path, line, duplicate) in enumerate(_walk(node, ())):
            if count > MOST_KEYS:
                raise ValueError("aliases of aliases: too many values")
            if duplicate:
                where = f"{file}:{line} ({schema.dotted(path)})"
                faults.append(Fault(f"this key stands twice (first in line {lines[path]})", where, "keep one of them"))
            lines.setdefault(path, line)
        return loader.construct_document(node), lines, faults
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        return None, lines, [Fault(f"not valid YAML: {error.problem or error.context}", where, hint)]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, lines, [Fault(f"not valid YAML: {' '.join(str(error).split())}", file, hint)]
    finally:
        if loader is not None:
            loader.dispose()


def _walk(node: yaml.Node, path: Path_, met: set[int] | None = None) -> Iterator[tuple[Path_, int, bool]]:
    """(path, line, is a duplicate) of every key and list item; what `<<` brings comes after the mapping's own keys.

    met: what `<<` has brought to this path already, by id: aliases of aliases would bring it any number of times.
    """
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        brought: list[yaml.Node] = []
        met = {id(node)} if met is None else met
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag == MERGE_KEY:
                brought += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            yield (*path, key.value), key.start_mark.line + 1, key.value in seen
            seen.add(key.value)
            yield from _walk(value, (*path, key.value))
        for other in brought:  # its duplicates are reported where it stands
            if id(other) not in met:
                met.add(id(other))
                yield from ((place, line, False) for place, line, _ in _walk(other, path, met))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, i), item.start_mark.line + 1, False
            yield from _walk(item, (*path, i))


def schema_faults(error: ValidationError, origin: Origin, within: Path_ = (), usual: str = SCHEMA_HINT) -> list[Fault]:
    """pydantic's errors in the recipe's words, one for each key."""
    faults: dict[Path_, Fault] = {}
    for item in error.errors(include_url=False):
        path = _written_path((*within, *item["loc"]), origin, missing=item["type"] == "missing")
        if path in faults:
            continue  # the other members of a union say the same again
        message, hint = item["msg"], ""
        if item["type"] == "extra_forbidden":
            message, hint = "unknown key", LEFT_OUT.get(path) or nearest(str(path[-1]), _keys_at(path[:-1]))
        elif item["type"] == "missing":
            message, hint = "this key is needed", f"add `{path[-1]}:`"
        elif path and path[-1] in ("layers",):
            message = f"{item['input']!r} is no range of layers"
            hint = "layers are zero-based and inclusive, like 0-7 or 3"
        elif isinstance(item.get("input"), str | int | float | bool) or item.get("input") is None:
            message = f"{message[0].lower()}{message[1:]}, not {item.get('input')!r}"
            allowed = re.findall(r"'([^']*)'", item.get("ctx", {}).get("expected", ""))
            hint = _meant(item.get("input")) or nearest(str(item.get("input")), allowed)
        else:
            message = f"{message[0].lower()}{message[1:]}"
        faults[path] = Fault(message, origin.where(path), hint or usual)
    return list(faults.values())


def _meant(value: Any) -> str:
    """What YAML took for something else."""
    if isinstance(value, bool):
        return "YAML reads on, off, yes and no as true and false; a ratio is a number: 0 is SFT, 1 is RLHF"
    try:
        return f"YAML reads it as text: write {float(value):g}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _written_path(loc: Path_, origin: Origin, *, missing: bool) -> Path_:
    """pydantic's location without the tags of unions, which stand in no recipe."""
    path: Path_ = ()
    for i, key in enumerate(loc):
        if (*path, key) in origin.lines:
            path = (*path, key)
        elif (*path, str(key)) in origin.lines:
            path = (*path, str(key))  # a key that is a number
        elif missing and i == len(loc) - 1:
            path = (*path, key)  # a missing key
    return path


def _keys_at(path: Path_) -> list[str]:
    """The keys that the schema knows at a path."""
    homes: dict[str, type[BaseModel]] = {
        "": Recipe,
        "models": schema.Models,
        **dict.fromkeys(schema.Models.model_fields, schema.Adapted),
        "merge": schema.Merge,
        "output": schema.Output,
        "fit": schema.Fit,
        "ratios": Ratios,
        "blocks": Block,
        "overrides": schema.Override,
    }
    names = [key for key in path if isinstance(key, str)]
    if names[-1:] == ["ratios"] and isinstance(path[-1], int):
        return list(Block.model_fields)  # a bare list of blocks
    home = homes.get(names[-1] if names else "")
    return list(home.model_fields) if home else []


def nearest(word: str, known: list[str]) -> str:
    """A hint: the known word that was meant, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    known = [k for k in known if k]
    return f"known here: {', '.join(known)}" if known else ""


def _reference_faults(models: Any, origin: Origin) -> Iterator[Fault]:
    """Models and adapters, as written, that can be neither a folder nor on the Hub."""
    for role, written in models.items() if isinstance(models, dict) else ():
        if role not in schema.Models.model_fields:
            continue
        parts = (
            {("models", role, key): written.get(key) for key in schema.Adapted.model_fields}
            if isinstance(written, dict)
            else {("models", role): written}
        )
        for path, model in parts.items():
            if not isinstance(model, str) or not model or is_folder(model):
                continue
            if model.partition("@")[0].count("/") > 1 or " " in model or model.startswith("@"):
                yield Fault(
                    f"{model!r} is neither a folder nor a Hub id",
                    origin.where(path),
                    "a folder begins with ./, ../, / or ~; a Hub id is owner/name or owner/name@revision",
                )


def _method_faults(merge: Any, models: Any, origin: Origin) -> Iterator[Fault]:
    """A method that is not there or has not what it needs, or keys, as written, that are none of its options."""
    method = merge.get("method", "average") if isinstance(merge, dict) else None
    if not isinstance(method, str):
        return
    if method not in method_names():
        yield Fault(
            f"there is no method {method!r}", origin.where(("merge", "method")), nearest(method, method_names())
        )
        return
    try:
        needs = method_needs(method)
    except ImportError as error:
        yield Fault(str(error), origin.where(("merge", "method")), "mend, update or uninstall that package")
        return
    for role in needs if isinstance(models, dict) else ():
        if role == "base" and not models.get(role):  # the others are needed anyway
            message = f"models.{role} is needed here: {method} merges what has changed since"
            yield Fault(message, origin.where(("models",)), f"add `{role}:` under `models`")
    if merge.get("vocabulary") == "common" and "base" not in needs:
        message = f"`vocabulary: common` is about the rows that base lacks, and {method} reads no base"
        yield Fault(message, origin.where(("merge", "vocabulary")), "leave it out: SFT and RLHF need one vocabulary")
    known = [*schema.Merge.model_fields, *method_options(method)]
    for key in merge:
        if isinstance(key, str) and key not in known:
            yield Fault("unknown key", origin.where(("merge", key)), nearest(key, known))
    options = {key: value for key, value in merge.items() if key in method_options(method)}
    try:
        checked = options_model(method).model_validate(options)
    except ValidationError as error:
        yield from schema_faults(error, origin, ("merge",), METHODS_HINT)
        return
    if message := check_options(method, checked.model_dump()):
        yield Fault(message, origin.where(("merge", next(iter(options), "method"))), METHODS_HINT)


def _ratio_faults(recipe: Recipe, origin: Origin) -> Iterator[Fault]:
    """What types alone cannot say of numbers."""
    if recipe.output.shard_bytes <= 0:
        yield Fault("a shard needs at least one byte", origin.where(("output", "max_shard_size")), "5GB is usual")
    written, at = recipe.merge.ratios, ("merge", "ratios")
    ratios = recipe.merge.resolved_ratios()
    if ratios is None:
        return
    blocks_at: Path_ = (*at, "blocks") if isinstance(written, Ratios) else at
    numbers: list[tuple[Path_, float]] = []
    for i, block in enumerate(ratios.blocks):
        path: Path_ = at if isinstance(written, int | float) else (*blocks_at, i)
        if isinstance(block, Block):
            one, two = block.ratio is not None, (block.attention is not None) + (block.mlp is not None)
            if one + (two == 2) != 1 or (one and two):
                hint = "write `ratio`, or `attention` and `mlp`"
                yield Fault("a block has one ratio, or one for attention and one for the MLP", origin.where(path), hint)
            for key in ("ratio", "attention", "mlp"):
                if (number := getattr(block, key)) is not None:
                    numbers.append(((*path, key), number))
            if not schema.parse_layers(block.layers):
                yield Fault(
                    f"{block.layers!r} is an empty range", origin.where((*path, "layers")), "first-last, like 0-7"
                )
        else:
            numbers.append((path, block))
    if len({isinstance(block, Block) for block in ratios.blocks}) > 1:
        hint = "write every block as {layers: ..., ratio: ...}, or every one as a number"
        yield Fault("numbers and blocks with layers are mixed", origin.where(blocks_at), hint)
    for key in ("head", "embeddings", "norms", "other"):
        if not isinstance(number := getattr(ratios, key), str):
            numbers.append(((*at, key), number))
    for i, override in enumerate(ratios.overrides):
        path = (*at, "overrides", i)
        numbers.append(((*path, "ratio"), override.ratio))
        if override.match is None and override.layers is None:
            hint = "add `match`, a glob over tensor names, or `layers`"
            yield Fault("an override says which tensors it is for", origin.where(path), hint)
        if override.layers is not None and not schema.parse_layers(override.layers):
            yield Fault(
                f"{override.layers!r} is an empty range", origin.where((*path, "layers")), "first-last, like 0-7"
            )
    for path, number in numbers:
        if not recipe.merge.extrapolate and not 0 <= number <= 1:
            yield Fault(
                f"the ratio {number:g} is outside 0..1",
                origin.where(path),
                "0 is SFT, 1 is RLHF; to go beyond on purpose (ExPO) write `extrapolate: true` under `merge`",
            )
