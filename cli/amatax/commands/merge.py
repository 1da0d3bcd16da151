"""amatax merge"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.push import (
    CreatePr,
    Message,
    Private,
    Replace,
    Restricted,
    Revision,
    Token,
    push_options,
    pushed_lines,
)
from amatax.commands.text import bar, columns, human_bytes, layer_range
from amatax.errors import OutputError

if TYPE_CHECKING:
    from amatax.api import MergeResult
    from amatax.checkpoints.checkpoint import Adapter
    from amatax.planning.plan import Plan
    from amatax.streaming.ranks import Ranks


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a ready recipe (`amatax recipes`)."),
    output: str = typer.Argument(
        "", help="The folder to write; wins over the recipe's output.path.", show_default=False
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan, found from headers alone, and stop."),
    fit: bool = typer.Option(
        False,
        "--fit",
        help="First fit the ratios to the recipe's `fit.data` or `fit.prompts`, into OUTPUT.fitted.yaml.",
    ),
    device: str = typer.Option(
        "cpu", help="Where to compute: cpu, cuda, cuda:N, several GPUs (cuda:0,cuda:1), or auto."
    ),
    threads: int = typer.Option(
        0,
        help="Workers; 0 is one for each core (of torchrun's processes: for each core of its share).",
        min=0,
        show_default=False,
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace another model in the output folder."),
    allow_nonfinite: bool = typer.Option(False, "--allow-nonfinite", help="Merge NaN and infinities as they come."),
    stream: bool = typer.Option(
        False, "--stream", help="Of Hub models read the tensors over the network; no copy of them on the disk."
    ),
    push: str = typer.Option(
        "", help="Then push it to this repository on the Hub, owner/name; see `amatax push`.", show_default=False
    ),
    private: Private = False,
    revision: Revision = "",
    create_pr: CreatePr = False,
    commit_message: Message = "",
    token: Token = "",
    replace: Replace = False,
    allow_restricted: Restricted = False,
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan or the result as JSON."),
) -> None:
    """Merge checkpoints as a recipe says, into a model folder ready for the Hub. A rerun continues an interrupted merge."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher
    from amatax.commands.ranks import one_voice
    from amatax.fitting.libraries import set_threads
    from amatax.recipes.gallery import find_recipe
    from amatax.streaming import importing
    from amatax.streaming.processes import rank_and_world

    if quiet or as_json or rank_and_world()[0] > 0:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if fit and dry_run:
        raise typer.BadParameter("the ratios are not known before the fit", param_hint="--dry-run")
    wishes = push_options(private, revision, create_pr, commit_message, token, replace, allow_restricted)
    if not push and any(wishes.values()):
        raise typer.BadParameter("the options of a push need it", param_hint="--push REPO")
    if dry_run:
        if rank_and_world()[0] > 0:
            return
        file = find_recipe(recipe)
        if push:
            api.check_push(file, push, **wishes)
        planned = api.plan(file, output or None, overwrite=overwrite, stream=stream, push_to=push or None)
        if as_json:
            print(json.dumps(plan_json(planned), indent=2))
        elif not quiet:
            print("\n".join(plan_lines(planned, threads, stream)))
        return
    importing.merges_only = not (push or fit)
    if fit:
        set_threads()
    with one_voice() as ranks:
        quiet = quiet or ranks.rank > 0
        file = ranks.each(lambda: find_recipe(recipe))
        if len(set(ranks.gather(fit))) > 1:
            raise OutputError("some of the ranks are to fit first and others not", "give every rank the same command")
        if fit:
            if push:
                ranks.first(lambda: api.check_push(file, push, **wishes))  # before the fit
            file = _fitted(ranks, file, output, device, overwrite, push if stream else "", quiet or as_json)
        with ProgressWatcher("merging", quiet=quiet or as_json) as watcher:
            result = api.merge(
                file,
                output or None,
                device=device,
                threads=threads or None,
                overwrite=overwrite,
                allow_nonfinite=allow_nonfinite,
                stream=stream,
                push_to=push or None,
                push_options=wishes,
                watcher=watcher,
            )
    if ranks.rank > 0:
        return
    if as_json:
        print(json.dumps(result_json(result), indent=2))
    elif not quiet:
        print("\n".join(result_lines(result)))


def _fitted(ranks: Ranks, file: Path, output: str, device: str, overwrite: bool, carried_to: str, quiet: bool) -> Path:
    """The recipe with fitted ratios, beside the folder that will be written; one that is finished is taken as it is."""
    from amatax import api
    from amatax.commands.fit_ratios import report_lines
    from amatax.commands.progress import ProgressWatcher
    from amatax.streaming.ranks import shown

    def begin() -> Path:
        recipe = api.load_recipe(file)
        folder = output or recipe.output.path
        if not folder:
            raise OutputError(
                "no output folder was named", "name it after the recipe, or add output.path to the recipe"
            )
        target = Path(f"{folder.rstrip('/')}.fitted.yaml")
        if (
            not target.exists()
        ):  # whatever is wrong with the merge is found before the fit, at ratios that stand for its own
            merge = recipe.merge.model_copy(update={"ratios": recipe.merge.ratios or 0.5})
            wanted = recipe.model_copy(update={"merge": merge})
            api.plan(wanted, folder, overwrite=overwrite, stream=bool(carried_to), push_to=carried_to or None)
        return target

    target = ranks.in_turn(begin)
    with ProgressWatcher("fitting", quiet=quiet, unit="samples") as watcher:
        result = api.fit_ratios(file, target, device=device, overwrite=overwrite, watcher=watcher)
    if ranks.rank > 0:
        shown(target.exists)
    if not quiet:
        for found in result.fits:
            print("\n".join([*report_lines(found)[:-1], ""]))
    return target


def block_lines(plan: Plan) -> list[str]:
    """The blocks and what lies outside them, with their ratios as bars (a full bar is RLHF)."""
    rows = []
    for i, block in enumerate(plan.blocks):
        parts = [("", block.attention)]
        if block.attention != block.mlp:
            parts = [(" attention", block.attention), (" mlp", block.mlp)]
        rows += [[f"block {i}", f"layers {layer_range(block.layers)}{name}", f"{r:g}", bar(r)] for name, r in parts]
    outside: dict[tuple[str, float], int] = {}
    for tensor in plan.tensors.values():
        kind = tensor.place.kind
        if tensor.place.layer is not None and kind != "norm":
            continue
        if kind == "norm":
            kind_name = "norms" if tensor.place.layer is None else "layers' norms"
            block_of = next((b for b in plan.blocks if tensor.place.layer in b.layers), None)
            if block_of is not None and tensor.ratio == block_of.rest:
                continue  # goes with its block
        else:
            kind_name = {"embedding": "embeddings", "head": "head"}.get(kind, "other")
        outside[kind_name, tensor.ratio] = outside.get((kind_name, tensor.ratio), 0) + 1
    for (name, ratio), count in outside.items():
        rows.append([name, f"{count} tensor{'s' if count > 1 else ''}", f"{ratio:g}", bar(ratio)])
    lines = columns(rows, right=(2,))
    if overridden := len(plan.ratios.overrides):
        lines.append(f"and {overridden} override(s); `amatax merge --dry-run --json` lists every tensor's ratio")
    return lines


def fetches(plan: Plan) -> int:
    """Bytes of Hub models that a merge brings into the cache, where it does not stream them."""
    from amatax.checkpoints.remote import to_come
    from amatax.planning.destination import State

    return 0 if plan.found is State.SAME else to_come(plan.checkpoints.values())


def plan_lines(plan: Plan, threads: int, stream: bool) -> list[str]:
    """The plan for people."""
    from amatax.planning.destination import unfinished
    from amatax.planning.memory import expected_memory

    lines = []
    for role, checkpoint in plan.checkpoints.items():
        where = f" ({checkpoint.commit[:12]})" if checkpoint.commit else ""
        size = f"{len(checkpoint.tensors)} tensors, {human_bytes(checkpoint.nbytes)}, {len(checkpoint.files)} file(s)"
        lines.append(f"{role:<6} {checkpoint.ref}{where}: {size}")
        if (adapter := checkpoint.adapter) is not None:
            where = f" ({adapter.commit[:12]})" if adapter.commit else ""
            size = f"on {adapter.changes} tensors, {human_bytes(adapter.nbytes)}"
            lines.append(f"{'':<6} with the adapter {adapter.ref}{where}: {size}")
    kinds = {"merged": 0, "copied from sft": 0, "copied from rlhf": 0, "copied from base": 0}
    for tensor in plan.tensors.values():
        kinds[f"copied from {tensor.copy_of}" if tensor.copy_of else "merged"] += 1
    shown = ", ".join(f"{count} {what}" for what, count in kinds.items() if count)
    lines += [
        "",
        f"{plan.model.layers} layers in {len(plan.blocks)} block(s), share of RLHF by {plan.recipe.merge.method}:",
    ]
    lines += [f"  {line}" for line in block_lines(plan)]
    lines += ["", f"tensors  {len(plan.tensors)}: {shown}"]
    if not stream and (coming := fetches(plan)):
        lines += [f"fetches  {human_bytes(coming)} into huggingface_hub's cache (--stream reads them without a copy)"]
    lines += [
        f"reads    {human_bytes(plan.reads)}",
        f"writes   {human_bytes(plan.writes)} in {len(plan.shards)} shard(s)",
    ]
    lines += [f"memory   about {human_bytes(expected_memory(plan, threads or None))}"]
    lines += [f"output   {plan.output or 'none named yet'} ({plan.found.value})"]
    if plan.output is not None and unfinished(plan.output.resolve()).exists():
        lines.append("note     unfinished work stands beside it; if it is of this merge, it will be continued")
    lines += [f"note     {note}" for note in plan.notes]
    return lines


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for scripts."""
    from amatax.planning.memory import expected_memory

    return {
        "identity": plan.identity,
        "fetches": fetches(plan),
        "method": plan.recipe.merge.method,
        "models": {
            role: {
                "ref": c.ref,
                "commit": c.commit,
                "bytes": c.nbytes,
                "adapter": c.adapter and _adapter_json(c.adapter),
            }
            for role, c in plan.checkpoints.items()
        },
        "layers": plan.model.layers,
        "blocks": [
            {"layers": [b.layers.start, b.layers.stop - 1], "attention": b.attention, "mlp": b.mlp} for b in plan.blocks
        ],
        "tensors": {
            t.name: {
                "ratio": t.ratio,
                "layer": t.place.layer,
                "kind": t.place.kind,
                "dtype": t.dtype,
                "shape": list(t.shape),
                "copy_of": t.copy_of,
            }
            for t in plan.tensors.values()
        },
        "shards": {shard.file: shard.nbytes for shard in plan.shards},
        "reads": plan.reads,
        "writes": plan.writes,
        "memory": expected_memory(plan),
        "output": str(plan.output) if plan.output else None,
        "state": plan.found.value,
        "notes": plan.notes,
    }


def _adapter_json(adapter: Adapter) -> dict[str, Any]:
    return {"ref": adapter.ref, "commit": adapter.commit, "bytes": adapter.nbytes, "tensors": adapter.changes}


def result_lines(result: MergeResult) -> list[str]:
    """The result for people."""
    plan, folder = result.plan, result.output
    pushed = [] if result.pushed is None else pushed_lines(result.pushed)
    if result.already and folder.exists():
        return [f"{folder} is finished already: the same merge, nothing was written", *pushed]
    if not folder.exists():  # taken to the Hub shard by shard
        return [*(f"  {line}" for line in block_lines(plan)), *(f"note: {note}" for note in result.notes), *pushed]
    lines = [f"merged into {folder} ({human_bytes(plan.writes)}, {len(plan.shards)} shard(s), {result.seconds:.1f} s)"]
    lines += [f"  {line}" for line in block_lines(plan)]
    if result.rounded_away is not None:
        lines.append(
            f"rounding to the output dtype took {result.rounded_away:.1%} of the mean change from sft (of a sample)"
        )
    lines += [f"note: {note}" for note in result.notes]
    loaded_by = plan.checkpoints[plan.recipe.output.config].loaded_by
    lines += [f'load:   transformers.{loaded_by}.from_pretrained("{folder}")', f"check:  amatax verify {folder} --load"]
    return [*lines, *pushed]


def result_json(result: MergeResult) -> dict[str, Any]:
    """The result for scripts."""
    return {
        "output": str(result.output),
        "already_finished": result.already,
        "identity": result.plan.identity,
        "shards": {shard.file: shard.nbytes for shard in result.plan.shards},
        "shards_kept": result.shards_kept,
        "bytes": result.plan.writes,
        "seconds": round(result.seconds, 3),
        "rounded_away": result.rounded_away,
        "notes": result.notes,
        "pushed": asdict(result.pushed) if result.pushed is not None else None,
    }
