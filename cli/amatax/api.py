"""The public verbs. The only module that sees every stage; the command line and scripts both come through here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.opening import open_checkpoint
from amatax.checkpoints.remote import fetch_side_files, remember_name
from amatax.errors import CheckpointError, OutputError
from amatax.planning.destination import RECIPE, RECORD, State
from amatax.planning.memory import default_threads
from amatax.planning.names import Anatomy, anatomy
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Recipe, is_folder
from amatax.streaming.importing import importing_torch

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillResult
    from amatax.fitting.job import FitResult
    from amatax.publishing.push import Pushed
    from amatax.publishing.shipping import Shipping
    from amatax.streaming.differences import Difference
    from amatax.streaming.stream import Streamer
    from amatax.writing.verification import Verdict

__all__ = [
    "Inspection",
    "MergeResult",
    "Watcher",
    "check_push",
    "difference",
    "distill",
    "fit_ratios",
    "inspect",
    "load_recipe",
    "merge",
    "plan",
    "push",
    "verify",
]

RecipeSource = Recipe | str | PathLike[str] | Mapping[str, Any]


class Watcher:
    """What a caller may want to see of a long job; by default nothing.

    `start(total)` is told the bytes that will be read, `advance(n)` every piece (from any thread), `wait()` is called now and
    then from the calling thread, `say(text)` gets a line for the user.
    """

    def start(self, total: int) -> None: ...
    def advance(self, n: int) -> None: ...
    def wait(self) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class MergeResult:
    """A finished merge.

    Attributes:
        plan: what was done.
        output: the model folder.
        already: it was finished before; nothing was written.
        shards_kept: shards that an interrupted run had finished.
        seconds: wall time of the merge, without imports.
        rounded_away: the part of the change from SFT that the output dtype rounded away (of a sample; None if nothing changed).
        notes: the plan's, and what was seen in the tensors.
        pushed: what is on the Hub, if it was pushed.
    """

    plan: Plan
    output: Path
    already: bool = False
    shards_kept: int = 0
    seconds: float = 0.0
    rounded_away: float | None = None
    notes: list[str] = field(default_factory=list)
    pushed: Pushed | None = None


@dataclass
class Inspection:
    """What the headers of a checkpoint say."""

    checkpoint: Checkpoint
    model: Anatomy


def _recipe(source: RecipeSource) -> Recipe:
    if isinstance(source, Recipe):
        return source if source.where() else load_recipe(source.model_dump(mode="json", exclude_none=True))
    return load_recipe(source)


def plan(recipe: RecipeSource, output: str | PathLike[str] | None = None, *, overwrite: bool = False) -> Plan:
    """Find out from headers alone what a merge will do, or everything that is wrong with it; of Hub models no weight is fetched.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder to write; wins over the recipe's output.path.
        overwrite: another model may stand in the output folder.

    Raises:
        RecipeError, PlanError: with all faults.
    """
    return make_plan(_recipe(recipe), Path(output) if output is not None else None, overwrite=overwrite, remote=True)


def merge(
    recipe: RecipeSource,
    output: str | PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    stream: bool = False,
    push_to: str | None = None,
    push_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> MergeResult:
    """Merge checkpoints into a model folder; a rerun continues an interrupted merge.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder to write; wins over the recipe's output.path.
        device: cpu, cuda, cuda:N, or auto.
        threads: workers; the cores of this process by default.
        overwrite: replace another model in the output folder.
        allow_nonfinite: merge NaN and infinities as they come.
        stream: of Hub models read the tensors over the network, and keep no copy of their weights on the disk.
        push_to: a repository on the Hub (owner/name) to push to. With `stream` each shard goes there as soon as it is finished,
            and nothing is left in the output folder.
        push_options: as of `push`.

    Raises:
        AmataxError: see amatax.errors.
    """
    watcher = watcher or Watcher()
    wanted = _recipe(recipe)
    if push_to:
        check_push(wanted, push_to, **(push_options or {}))
    carried = bool(push_to) and stream
    if carried and output is None and wanted.output.path is None:
        output = str(push_to).rpartition("/")[2]  # where it works
    planned = make_plan(
        wanted, Path(output) if output is not None else None, overwrite=overwrite, remote=True, carried=carried
    )
    folder = planned.output
    if folder is None:
        hint = "add `output: {path: FOLDER}` to the recipe, or name the folder after the recipe"
        raise OutputError("no output folder was named", hint)
    if planned.found is State.SAME and not overwrite:
        from amatax.writing.workplace import tidy

        if _touched_since(planned, folder / RECORD):
            planned = _downloaded(planned, watcher)
            watcher.say("input files are newer than the output: comparing their checksums")
            _same_inputs(planned, folder, _streamer(planned, device, threads, allow_nonfinite, watcher)(), watcher)
        tidy(folder)
        result = MergeResult(planned, folder, already=True, notes=planned.notes)
        result.pushed = _pushed(folder, push_to, push_options, watcher)
        return result

    if stream:
        fetch_side_files(planned.side_files.values(), planned.checkpoints.values())
    else:
        planned = _downloaded(planned, watcher, overwrite=overwrite)
    streamer = _streamer(planned, device, threads, allow_nonfinite, watcher)
    from amatax.writing.record import rounded_away
    from amatax.writing.workplace import Workplace
    from amatax.writing.writer import write_model

    shipping = _shipping(planned, push_to, push_options, watcher) if push_to and carried else None
    started = time.perf_counter()
    kept = 0

    def resumed(work: Workplace) -> None:
        nonlocal kept
        kept = len(work.done)
        if work.discarded:
            watcher.say(work.discarded)
        elif kept:
            watcher.say(f"continuing: {kept} of {len(planned.shards)} shards are finished")
        todo = [name for shard in planned.shards if shard.file not in work.done for name in shard.offsets]
        watcher.start(sum(planned.tensors[name].reads for name in todo))

    entries = write_model(
        planned,
        folder,
        streamer,
        overwrite=overwrite,
        resumed=resumed,
        wait=watcher.wait,
        carrier=shipping,
    )
    notes = list(planned.notes)
    if differing := [name for entry in entries for name in entry["differs"]]:
        notes.append(
            f"{len(differing)} integer tensors differ between the models; sft's are kept, first {differing[0]!r}"
        )
    result = MergeResult(
        planned,
        folder,
        shards_kept=kept,
        seconds=time.perf_counter() - started,
        rounded_away=rounded_away(entries),
        notes=notes,
    )
    if shipping is not None:
        shipping.clear()
        result.pushed = shipping.pushed
    else:
        result.pushed = _pushed(folder, push_to, push_options, watcher)
    return result


def _pushed(folder: Path, repo: str | None, options: Mapping[str, Any] | None, watcher: Watcher) -> Pushed | None:
    return push(folder, repo, watcher=watcher, **(options or {})) if repo else None


def _shipping(planned: Plan, repo: str, options: Mapping[str, Any] | None, watcher: Watcher) -> Shipping:
    from amatax.publishing.push import PushOptions, check_push
    from amatax.publishing.shipping import Shipping

    wishes = PushOptions(**(options or {}))
    target = check_push(planned.recipe.models.by_role(), repo, wishes)
    return Shipping(planned, repo, target, wishes, watcher.say)


def inspect(model: str | PathLike[str]) -> Inspection:
    """Open a checkpoint (a folder or a Hub id) by its headers and place its tensors.

    Raises:
        CheckpointError, HubError
    """
    name = str(model)
    return _inspect(f"./{name}" if Path(name).is_dir() and not is_folder(name) else name, remote=True)


def _inspect(model: str, *, remote: bool) -> Inspection:
    checkpoint = open_checkpoint(model, remote=remote)
    return Inspection(checkpoint, anatomy(checkpoint.tensors, checkpoint.config))


def difference(
    one: Inspection, other: str | PathLike[str], watcher: Watcher | None = None
) -> tuple[Inspection, list[Difference]]:
    """How far a second checkpoint is from the first, tensor by tensor.

    Raises:
        CheckpointError: also if they have no tensor in common.
    """
    from amatax.planning.siblings import align
    from amatax.streaming.differences import differences

    watcher = watcher or Watcher()
    second = inspect(other)
    one, second = (_inspect(i.checkpoint.pinned, remote=False) if i.checkpoint.remote else i for i in (one, second))
    theirs, _ = align(one.checkpoint, second.checkpoint, "other")
    watcher.start(one.checkpoint.nbytes + second.checkpoint.nbytes)
    found = []
    for item in differences(one.checkpoint.tensors, theirs, watcher.advance):
        found.append(item)
        watcher.wait()
    if not found:
        raise CheckpointError(
            f"{one.checkpoint.ref} and {second.checkpoint.ref} have no tensor in common", "are they siblings?"
        )
    return second, found


def verify(
    folder: str | PathLike[str],
    *,
    sample: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    watcher: Watcher | None = None,
) -> Verdict:
    """Merge a finished folder again from its record and compare bit for bit.

    Args:
        folder: what `merge` wrote.
        sample: compare so many tensors, drawn with a fixed seed; all by default.

    Raises:
        CheckpointError: if the folder was not written by amatax.
        PlanError: if the inputs are gone or are no longer what was merged.
    """
    from amatax.writing.verification import verify_folder

    watcher = watcher or Watcher()
    path = Path(folder)
    for file in (RECIPE, RECORD):
        if not (path / file).is_file():
            hint = "verify checks folders that `amatax merge` has finished"
            raise CheckpointError(f"{path}: no {file}: not a folder that amatax wrote", hint)
    planned = make_plan(load_recipe(path / RECIPE))
    streamer = _streamer(planned, device, threads, True, watcher)
    total = sum(tensor.reads for tensor in planned.tensors.values())
    watcher.start(math.ceil(total * min(1, sample / len(planned.tensors))) if sample else total)
    return verify_folder(path, planned, streamer(), sample, watcher.wait)


def push(folder: str | PathLike[str], repo: str, *, watcher: Watcher | None = None, **options: Any) -> Pushed:
    """Push a finished merge to the Hub, with a card that says what it is made of; a rerun sends only what has not arrived.

    Args:
        folder: what `merge` wrote; it is checked against its record first.
        repo: owner/name on the Hub; made if it does not exist.
        options: private, revision, create_pr, ...: the fields of amatax.publishing.push.PushOptions.

    Raises:
        OutputError: if the folder is unfinished or has changed.
        HubError: what the Hub said, and the next step.
        TypeError: for an option that there is not.
    """
    from amatax.publishing.push import PushOptions, push_folder

    watcher = watcher or Watcher()
    wanted = PushOptions(**options)

    def advance(n: int) -> None:
        watcher.advance(n)
        watcher.wait()

    return push_folder(Path(folder), repo, wanted, start=watcher.start, advance=advance, say=watcher.say)


def check_push(recipe: RecipeSource, repo: str, **options: Any) -> None:
    """Find out before any work whether the merge of a recipe may be pushed there.

    Raises:
        OutputError, HubError: as `push` would, at the end.
    """
    from amatax.publishing.push import PushOptions, check_push

    check_push(_recipe(recipe).models.by_role(), repo, PushOptions(**options))


def distill(
    recipe: RecipeSource,
    prompts: str | PathLike[str],
    output: str | PathLike[str],
    *,
    watcher: Watcher | None = None,
    **options: Any,
) -> DistillResult:
    """Sample the proxy set D_theta of AMA (arXiv 2309.06256, Eq. 7): responses of the recipe's RLHF model to prompts.

    An interrupted run continues from its journal beside the output; the same run again ends at once.

    Args:
        recipe: a Recipe, a YAML file, or a mapping; one of its models answers, with the tokenizer of `output.tokenizer`.
        prompts: JSONL of `prompt` or `messages`.
        output: the JSONL file to write.
        options: n, temperature, server, reward, top, ...: the fields of amatax.fitting.distilling.DistillOptions.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.fitting.distilling import DistillOptions, distil

    return distil(_recipe(recipe), Path(prompts), Path(output), DistillOptions(**options), watcher or Watcher())


def fit_ratios(
    recipe: RecipeSource,
    output: str | PathLike[str],
    *,
    picture: str | PathLike[str] | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> FitResult:
    """Fill in a recipe's ratios by maximum likelihood on responses of the RLHF model (AMA, arXiv 2309.06256, Eq. 8).

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the recipe to write; with several alphas NAME-ALPHA.yaml beside it.
        picture: a PNG to draw; with several alphas NAME-ALPHA.png beside it, and if they are tax-aware, their front in NAME.png.
        options: data, alpha, keep, blocks, ...: the fields of amatax.fitting.options.FitOptions.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.fitting.job import fit_job
    from amatax.fitting.options import FitOptions

    png = Path(picture) if picture is not None else None
    if png is not None and (png.suffix.lower() != ".png" or not png.resolve().parent.is_dir()):
        raise OutputError(f"{png}: no PNG file can be written there", "name a .png in a folder that exists")
    source = Path(recipe) if isinstance(recipe, str | PathLike) else None
    loaded = _recipe(recipe)
    text = source.read_text(encoding="utf-8") if source else ""
    result = fit_job(loaded, text, source, Path(output), FitOptions(**options), watcher or Watcher())
    if png is not None:
        from amatax.fitting.picture import draw, draw_front

        for fitted in result.fits:
            which = fitted.recipe.stem.removeprefix(Path(output).stem) if len(result.fits) > 1 else ""
            draw(fitted.fit, png.with_name(f"{png.stem}{which}.png"))
        if len(result.fits) > 1 and result.fits[0].fit.tradeoff:
            draw_front([fitted.fit for fitted in result.fits], png)
    return result


def _streamer(
    planned: Plan, device: str, threads: int | None, allow_nonfinite: bool, watcher: Watcher
) -> Callable[[], Streamer]:
    """torch is imported here, after everything that can go wrong without it has gone right."""
    with importing_torch():
        from amatax.streaming.stream import Streamer, pick_device

    where = pick_device(device)
    count = threads or default_threads()
    return lambda: Streamer(planned, where, count, allow_nonfinite=allow_nonfinite, advance=watcher.advance)


def _downloaded(planned: Plan, watcher: Watcher, *, overwrite: bool = False) -> Plan:
    """The same plan with every file here: what was planned from the Hub's headers is fetched now, at the planned commits.

    Raises:
        HubError: if the Hub stops answering; what has arrived is kept.
    """
    far = {role: checkpoint for role, checkpoint in planned.checkpoints.items() if checkpoint.remote is not None}
    if not far:
        return planned
    size = sum(checkpoint.nbytes for checkpoint in far.values())
    watcher.say(
        f"fetching {' and '.join(c.pinned for c in far.values())}, {size / 1e9:.2f} GB where not in the cache yet"
    )
    near = make_plan(planned.recipe, planned.output, overwrite=overwrite)
    for checkpoint in far.values():
        remember_name(checkpoint)
    return near


def _touched_since(planned: Plan, record: Path) -> bool:
    """Whether an input may be another one than when the record was written: as in make, by the files' times."""
    return max(c.touched_ns for c in planned.checkpoints.values()) >= record.stat().st_mtime_ns


def _same_inputs(planned: Plan, output: Path, streamer: Streamer, watcher: Watcher) -> None:
    """Make sure by checksums that a finished folder was merged from these inputs.

    Raises:
        OutputError: if an input has changed since.
    """
    from amatax.writing.record import read_record

    watcher.start(planned.reads)
    recorded = read_record(output)["tensors"]
    results = streamer.run(planned.tensors.values(), lambda tensor, begin, data: None, watcher.wait)
    changed = [
        name
        for name, result in results.items()
        if any(recorded.get(name, {}).get(role) != checksum for role, checksum in result.checksums.items())
    ]
    if changed:
        raise OutputError(
            f"{output}: merged from other inputs: {len(changed)} tensors have changed since, first {min(changed)!r}",
            "merge into another folder, or replace this one with --overwrite",
        )
