"""A mergekit configuration as data: its models, slices and parameters with their lines, or every fault in its form.

The form is that of mergekit 0.1.5 (`mergekit-yaml`). What is well formed there and means nothing here is a fault with its reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from amatax.errors import Fault, RecipeError
from amatax.recipes.loading import nearest, read_yaml
from amatax.recipes.mergekit_parameters import METHODS, Path_, Scope, read_scope
from amatax.recipes.schema import Origin

DTYPES = ("float64", "float32", "float16", "bfloat16")
KEYS = (
    "models",
    "slices",
    "modules",
    "merge_method",
    "base_model",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "parameters",
)
NO_METHOD = {  # mergekit's, and why there is no such recipe
    "passthrough": ("it copies and stacks layers, and merges nothing", "a recipe merges every layer of two siblings"),
    "nuslerp": ("it has weights where slerp has t", "the nearest: `merge_method: slerp`, with t as the second's share"),
}
NO_SUCH = ("arcee_fusion", "karcher", "multislerp", "nearswap", "ram", "ramplus_tl", "sce")
YAML_HINT = "look at that line"
MOST_LAYERS = 10_000  # of a model
LORA_HINT = "write `model+adapter` in one line, one adapter for a model"


@dataclass(frozen=True)
class Slice:
    """Layers of the output and the models they come from; `layers` is None for all that there are (`models:`)."""

    layers: range | None
    models: dict[str, Scope]  # by name, as they are written
    shared: Scope
    at: Path_

    def scopes(self, model: str | None, top: Scope) -> list[Scope]:
        """Where mergekit looks a parameter up, nearest first."""
        own = [self.models[model]] if model is not None else []
        return [*own, self.shared, top]


@dataclass
class Mergekit:
    """A configuration."""

    origin: Origin
    method: str
    base: str | None
    slices: list[Slice]
    top: Scope
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None  # whose: a model, or `base`
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Every model that is merged, once, in the order of the file; a base that is not listed comes last."""
        return list(dict.fromkeys(model for part in self.slices for model in part.models))

    @property
    def scopes(self) -> list[Scope]:
        """All that there are."""
        return [self.top, *(s for part in self.slices for s in (part.shared, *part.models.values()))]

    def where(self, *path: str | int) -> str:
        """file:line (key.path)."""
        return self.origin.where(path)

    def written(self, parameter: str) -> str:
        """Where a parameter stands first; the file's `merge_method` if nowhere."""
        for scope in reversed(self.scopes):
            if parameter in scope.settings:
                return self.origin.where((*scope.at, parameter))
        return self.where("merge_method")


def parse_mergekit(text: str, file: str) -> Mergekit:
    """A configuration's text as data; `file` is for messages.

    Raises:
        RecipeError: with every fault of its form, and everything in it that no recipe can say.
    """
    data, lines, faults = read_yaml(text, file, YAML_HINT)
    origin = Origin(file, lines)
    if not faults and not isinstance(data, dict):
        faults = [Fault("a mergekit configuration is a mapping with `merge_method`", file, "name such a file")]
    if faults:
        raise RecipeError(faults)
    method = data.get("merge_method")
    faults = [*_method_faults(data, origin), *_refused(data, origin)]
    if faults and method not in METHODS:
        raise RecipeError(faults)
    base = _model(data.get("base_model"), ("base_model",), origin, faults) if data.get("base_model") else None
    top = read_scope(data.get("parameters"), method, ("parameters",), origin, faults)
    slices = _slices(data, method, origin, faults)
    bases = {part_base for _, part_base in slices}
    if bases - {None, base}:
        if base is None and len(bases) == 1:
            (base,) = bases
        else:
            message = "the slices have different base models: a recipe has one"
            faults.append(Fault(message, origin.where(("slices",)), "write `base_model` once, at the top"))
    config = Mergekit(origin, method, base, [part for part, _ in slices], top)
    config.dtype, config.out_dtype = (_dtype(data.get(k), k, origin, faults) for k in ("dtype", "out_dtype"))
    config.tokenizer = _tokenizer(data, origin, faults)
    faults += _coverage_faults(config)
    if faults:
        raise RecipeError(faults)
    _add_base(config)
    config.notes = list(_unread(data, config))
    return config


def _method_faults(data: dict[str, Any], origin: Origin) -> Iterator[Fault]:
    method, where = data.get("merge_method"), origin.where(("merge_method",))
    if "experts" in data:
        yield Fault("a configuration of mergekit-moe, which builds a mixture of experts", where, "no recipe does that")
    elif not isinstance(method, str):
        yield Fault("`merge_method` is needed, a method's name", where, f"known here: {', '.join(METHODS)}")
    elif method in NO_METHOD or method in NO_SUCH:
        why, hint = NO_METHOD.get(method, ("", f"known here: {', '.join(METHODS)}"))
        yield Fault(f"`{method}` cannot be said in a recipe: {why or 'there is no such method here'}", where, hint)
    elif method not in METHODS:
        yield Fault(f"mergekit has no method {method!r}", where, nearest(method, [*METHODS, *NO_METHOD, *NO_SUCH]))


def _refused(data: dict[str, Any], origin: Origin) -> Iterator[Fault]:
    """Keys that say what no recipe can."""
    forms = [key for key in ("models", "slices", "modules") if data.get(key)]
    if len(forms) != 1 and "experts" not in data:
        message = f"exactly one of `models`, `slices` and `modules` is needed, not {len(forms)}"
        yield Fault(message, origin.where((forms[-1],) if forms else ()), "mergekit refuses this too")
    if data.get("modules"):
        message = (
            "`modules` merges parts of a model each in its own way: a recipe tells tensors apart by layer and name"
        )
        hint = "a single module: write its `models` or `slices` at the top"
        yield Fault(message, origin.where(("modules",)), hint)
    if (template := data.get("chat_template")) and template != "auto":
        message = "a recipe copies the chat template of one model, and writes no other"
        hint = "leave the key out, and put the template into the merged folder's chat_template.jinja"
        yield Fault(message, origin.where(("chat_template",)), hint)


def _slices(data: dict[str, Any], method: str, origin: Origin, faults: list[Fault]) -> list[tuple[Slice, str | None]]:
    """Each slice, and the base model that it names itself."""
    key = "models" if data.get("models") else "slices"
    written = data.get(key)
    if not isinstance(written, list) or not all(isinstance(item, dict) for item in written):
        if written:
            faults.append(Fault(f"`{key}` is a list of mappings", origin.where((key,)), "- model: owner/name"))
        return []
    if key == "models":
        models = _sources(written, ("models",), method, origin, faults)
        return [(Slice(None, models, Scope({}, ("models",)), ("models",)), None)]
    found = []
    for i, item in enumerate(written):
        at: Path_ = ("slices", i)
        sources = item.get("sources")
        if not isinstance(sources, list) or not sources or not all(isinstance(source, dict) for source in sources):
            faults.append(Fault("a slice has `sources`, a list of mappings", origin.where(at), "- model: owner/name"))
            continue
        ranges = [_layers(source, (*at, "sources", j), origin, faults) for j, source in enumerate(sources)]
        if len({(r.start, r.stop) for r in ranges if r is not None}) > 1:
            message = (
                "its models have different layers: a recipe merges each layer with the same one of the other model"
            )
            faults.append(Fault(message, origin.where((*at, "sources")), "give all sources one `layer_range`"))
        models = _sources(sources, (*at, "sources"), method, origin, faults)
        shared = read_scope(item.get("parameters"), method, (*at, "parameters"), origin, faults)
        own = _model(item["base_model"], (*at, "base_model"), origin, faults) if item.get("base_model") else None
        found.append((Slice(ranges[0], models, shared, at), own))
    return found


def _layers(source: dict[str, Any], at: Path_, origin: Origin, faults: list[Fault]) -> range | None:
    match source.get("layer_range"):
        case [int(first), int(end)] if 0 <= first < end <= MOST_LAYERS:
            return range(first, end)
    hint = "[0, 8] are the layers 0 to 7"
    faults.append(Fault("`layer_range` is the first layer and the one after the last", origin.where(at), hint))
    return None


def _sources(
    written: list[dict[str, Any]], at: Path_, method: str, origin: Origin, faults: list[Fault]
) -> dict[str, Scope]:
    found: dict[str, Scope] = {}
    for i, item in enumerate(written):
        name = _model(item.get("model"), (*at, i, "model"), origin, faults)
        if name in found:
            message = f"{name!r} stands twice among models that are merged"
            faults.append(Fault(message, origin.where((*at, i)), "mergekit refuses this too: add up its weights"))
        found[name] = read_scope(item.get("parameters"), method, (*at, i, "parameters"), origin, faults)
    return found


def _model(raw: Any, at: Path_, origin: Origin, faults: list[Fault]) -> str:
    """A model's name, with its revision, as mergekit writes it: `path`, `path@revision`, or the same as a mapping."""
    rest = raw if isinstance(raw, dict) else {}
    match rest.get("model", raw):
        case {"path": str(name), "revision": str(revision)}:
            name = f"{name}@{revision}"
        case {"path": str(name)} | str(name) if name:
            pass
        case _:
            faults.append(Fault("a model is a folder or owner/name", origin.where(at), "write `model: owner/name`"))
            return repr(raw)
    if rest.get("lora") or name.count("+") > 1 or "" in name.split("+"):
        faults.append(Fault(f"{name!r}: a LoRA adapter in another form", origin.where(at), LORA_HINT))
    elif rest.get("override_architecture"):
        message = "`override_architecture`: a recipe goes by the tensors' names and knows no architectures"
        faults.append(Fault(message, origin.where(at), "leave it out"))
    elif any(half.count("@") > 1 for half in name.split("+")):
        faults.append(Fault(f"{name!r} has more than one @", origin.where(at), "owner/name@revision"))
    return name


def _dtype(raw: Any, key: str, origin: Origin, faults: list[Fault]) -> str | None:
    name = str(raw or "").removeprefix("torch.")
    if name and name not in DTYPES:
        faults.append(Fault(f"no dtype of a recipe: {raw!r}", origin.where((key,)), nearest(name, list(DTYPES))))
    return name or None


def _tokenizer(data: dict[str, Any], origin: Origin, faults: list[Fault]) -> str | None:
    at: Path_ = ("tokenizer_source",)
    source = data.get("tokenizer_source")
    if (long := data.get("tokenizer")) is not None:
        if source:
            message = "`tokenizer_source` and `tokenizer` stand together"
            faults.append(Fault(message, origin.where(("tokenizer",)), "mergekit refuses this too: keep one"))
        long = long if isinstance(long, dict) else {}
        source, at = long.get("source", "union"), ("tokenizer", "source") if "source" in long else ("tokenizer",)
        for key in ("tokens", "pad_to_multiple_of"):
            if long.get(key):
                message = f"`{key}` makes embeddings that no input has: a recipe merges rows as they are on disk"
                where = origin.where(("tokenizer", key))
                faults.append(Fault(message, where, "change the models before the merge, or the result after it"))
    if source == "union":
        message = "a union of tokenizers gives embeddings a new order: a recipe merges rows as they are on disk"
        hint = "if all models have one tokenizer: `tokenizer_source: base`"
        faults.append(Fault(message, origin.where(at), hint))
        return None
    return _model(source, at, origin, faults) if source else None


def _coverage_faults(config: Mergekit) -> Iterator[Fault]:
    """Slices that are not the layers from 0 on, each once, in order."""
    reached = 0
    for part in config.slices:
        if part.layers is None:
            continue
        if part.layers.start != reached:
            message = f"begins with layer {part.layers.start} where layer {reached} is next: a recipe keeps every layer, in order"
            hint = "leaving out, doubling and moving layers is mergekit's alone"
            yield Fault(message, config.where(*part.at), hint)
        reached = part.layers.stop


def _add_base(config: Mergekit) -> None:
    """mergekit merges a base that is not among `models` as one more model without parameters; with slices it does not."""
    for part in config.slices:
        if part.layers is None and config.base is not None and config.base not in part.models:
            part.models[config.base] = Scope({}, ("base_model",))


def _unread(data: dict[str, Any], config: Mergekit) -> Iterator[str]:
    """What stands in the file and has no effect in mergekit: a typing slip more often than not."""
    for key in data:
        if key not in KEYS:
            yield f"mergekit reads no `{key}`{_meant(str(key), KEYS)}: it has no effect there, nor here"
    if data.get("chat_template") == "auto":
        yield "`chat_template: auto` takes the most common one there; here the chat template comes with the tokenizer"
    for part in config.slices:
        if "normalize" in METHODS[config.method].shared and config.method != "linear" and config.base in part.models:
            for name in part.models[config.base].settings:
                where = config.where(*part.models[config.base].at, name)
                yield f"the base has no `{name}`: {where} has no effect in mergekit, nor here"
    known = METHODS[config.method]
    seen: dict[str, None] = {}
    for path in config.origin.lines:
        if len(path) < 2 or path[-2] != "parameters" or not isinstance(path[-1], str):
            continue
        name, of_model = path[-1], "sources" in path or path[0] == "models"
        if name not in known.shared and name not in known.each:
            close = _meant(name, (*known.shared, *known.each))
            seen[f"{config.method} in mergekit reads no `{name}`{close}: it has no effect there, nor here"] = None
        elif of_model and name in known.shared:
            seen[f"mergekit reads `{name}` not of a model: {config.where(*path)} has no effect there, nor here"] = None
    yield from seen


def _meant(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (`{close[0]}`?)" if close else ""
