"""amatax inspect"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.text import bar, columns, human_bytes

if TYPE_CHECKING:
    from amatax.api import Inspection
    from amatax.streaming.differences import Difference

KINDS = ("attention", "mlp", "layer", "norm", "embedding", "head", "other")


def run(
    checkpoint: str = typer.Argument(help="A model folder, an adapter's folder, a Hub id, or a recipe."),
    other: str = typer.Argument("", help="A second one: how far it is from the first.", show_default=False),
    names: bool = typer.Option(False, "--names", help="List every tensor with its place."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show a checkpoint's layers, kinds, dtypes and sizes; with two, the relative difference by layer and kind."""
    from amatax import api
    from amatax.commands.inspect_adapter import adapter_json, adapter_lines
    from amatax.errors import LoneAdapterError

    if checkpoint.endswith((".yaml", ".yml")) and not other:
        found_by_role = api.inspect_recipe(checkpoint)
        if as_json:
            print(json.dumps({role: inspection_json(one) for role, one in found_by_role.items()}, indent=2))
        else:
            shown = {role: name_lines(one) if names else inspection_lines(one) for role, one in found_by_role.items()}
            print("\n\n".join("\n".join([f"{role}:", *lines]) for role, lines in shown.items()))
        return
    try:
        one = api.inspect(checkpoint)
    except LoneAdapterError:
        if other:
            raise
        adapter = api.inspect_adapter(checkpoint)
        print(
            json.dumps(adapter_json(adapter), indent=2) if as_json else "\n".join(adapter_lines(adapter, names=names))
        )
        return
    if not other:
        if as_json:
            print(json.dumps(inspection_json(one), indent=2))
        else:
            print("\n".join(name_lines(one) if names else inspection_lines(one)))
        return

    from amatax.commands.progress import ProgressWatcher

    with ProgressWatcher("comparing", quiet=as_json) as watcher:
        second, found = api.difference(one, other, watcher)
    if as_json:
        print(json.dumps(difference_json(one, found), indent=2))
    else:
        print("\n".join(difference_lines(one, second, found)))


def inspection_lines(one: Inspection) -> list[str]:
    """A checkpoint's parts for people, the adapter on it first."""
    from amatax.commands.inspect_adapter import adapter_lines

    c, model = one.checkpoint, one.model
    parameters = sum(math.prod(entry.shape) for entry in c.tensors.values())
    lines = [f"{c.ref}{f' at {c.commit}' if c.commit else ''}"]
    lines.append(f"{', '.join(c.architectures) or 'no architecture named'}")
    lines.append(
        f"{len(c.tensors)} tensors, {parameters:,} parameters, {human_bytes(c.nbytes)} in {len(c.files)} file(s)"
    )
    dtypes: dict[str, int] = {}
    for entry in c.tensors.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + entry.nbytes
    lines.append(
        "dtypes: " + ", ".join(f"{d} {human_bytes(n)}" for d, n in sorted(dtypes.items(), key=lambda x: -x[1]))
    )
    promised = f" (config.json promises {model.promised})" if model.promised not in (None, model.layers) else ""
    lines += ["", f"{model.layers} layers{promised}; stacks:"]
    rows = [
        [
            f"  {s.prefix or '(top)'}",
            f"{len(s.indices)} numbers",
            f"{s.tensors} tensors",
            "backbone" if s.prefix in model.backbone else "beside it",
        ]
        for s in model.stacks
    ]
    lines += columns(rows) if rows else ["  none"]
    lines += ["", "by kind:"]
    totals = {kind: [0, 0] for kind in KINDS}
    for name, place in model.places.items():
        totals[place.kind][0] += 1
        totals[place.kind][1] += c.tensors[name].nbytes
    rows = [
        [f"  {kind}", f"{count} tensors", human_bytes(size), bar(size / max(1, c.nbytes))]
        for kind, (count, size) in totals.items()
        if count
    ]
    lines += [*columns(rows, right=(1, 2)), *(f"note: {note}" for note in c.notes)]
    if one.adapter is None:
        return lines
    changes = c.adapter.changes if c.adapter else 0
    return [*adapter_lines(one.adapter), f"it changes {changes} tensors of", "", *lines]


def name_lines(one: Inspection) -> list[str]:
    """Every tensor: layer, kind, dtype, shape, name."""
    rows = []
    for name, entry in one.checkpoint.tensors.items():
        place = one.model.places[name]
        layer = "-" if place.layer is None else str(place.layer)
        shown = name if name.isprintable() else repr(name)  # no escapes to the terminal
        rows.append([layer, place.kind, entry.dtype, str(list(entry.shape)), shown])
    return columns(rows, right=(0,))


def inspection_json(one: Inspection) -> dict[str, Any]:
    """A checkpoint's parts for scripts."""
    from amatax.commands.inspect_adapter import adapter_json

    c = one.checkpoint
    return {
        **({"adapter": adapter_json(one.adapter)} if one.adapter else {}),
        "model": c.ref,
        "commit": c.commit,
        "architectures": c.architectures,
        "bytes": c.nbytes,
        "layers": one.model.layers,
        "backbone": list(one.model.backbone),
        "stacks": {s.prefix: {"numbers": len(s.indices), "tensors": s.tensors} for s in one.model.stacks},
        "files": {f.path.name: f.size for f in c.files},
        "tensors": {
            name: {
                "layer": one.model.places[name].layer,
                "kind": one.model.places[name].kind,
                "dtype": e.dtype,
                "shape": list(e.shape),
                "bytes": e.nbytes,
            }
            for name, e in c.tensors.items()
        },
        "notes": c.notes,
    }


def difference_lines(one: Inspection, second: Inspection, found: list[Difference]) -> list[str]:
    """|other - one| / |one| by layer and kind, the largest as a full bar."""
    from amatax.streaming.differences import relative

    groups = _groups(one, found)
    values = {key: relative(items) for key, items in groups.items()}
    top = max((v for v in values.values() if math.isfinite(v)), default=0.0) or 1.0
    lines = [
        f"{second.checkpoint.ref} against {one.checkpoint.ref}: |difference| / |first| is {relative(found):.2e} over all"
    ]
    compared = {d.name for d in found}
    missing = [n for n in one.checkpoint.tensors if n not in compared]
    lines.append("")
    rows = [["layer", "kind", "difference", ""]]
    for (layer, kind), value in values.items():
        rows.append(["-" if layer is None else str(layer), kind, f"{value:.2e}", bar(value / top)])
    lines += columns(rows, right=(0,))
    if missing:
        lines.append(
            f"{len(missing)} tensors were not compared (absent, of another shape, or integers), first {missing[0]!r}"
        )
    return lines


def difference_json(one: Inspection, found: list[Difference]) -> dict[str, Any]:
    """The same for scripts."""
    from amatax.streaming.differences import relative

    def number(items: list[Difference]) -> float | None:  # JSON has no infinity
        return value if math.isfinite(value := relative(items)) else None

    return {
        "relative": number(found),
        "groups": [
            {"layer": layer, "kind": kind, "relative": number(items)}
            for (layer, kind), items in _groups(one, found).items()
        ],
        "tensors": {d.name: number([d]) for d in found},
    }


def _groups(one: Inspection, found: list[Difference]) -> dict[tuple[int | None, str], list[Difference]]:
    groups: dict[tuple[int | None, str], list[Difference]] = {}
    for difference in found:
        place = one.model.places[difference.name]
        groups.setdefault((place.layer, place.kind), []).append(difference)

    def order(key: tuple[int | None, str]) -> tuple[bool, int, int]:
        layer, kind = key
        return layer is None, layer or 0, KINDS.index(kind)

    return {key: groups[key] for key in sorted(groups, key=order)}
