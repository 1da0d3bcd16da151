"""merge and verify: from a recipe to a model folder, and back to its inputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.api.common import RecipeSource, Watcher, as_recipe
from amatax.api.planning import downloaded, planned_from_headers
from amatax.api.pushing import check_push, push
from amatax.api.ranks import RanksWatcher, check_same
from amatax.checkpoints.remote import fetch_side_files
from amatax.errors import CheckpointError, OutputError
from amatax.planning.destination import RECIPE, RECORD, State
from amatax.planning.memory import default_threads
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.loading import load_recipe
from amatax.streaming.importing import importing_torch
from amatax.streaming.joining import joined
from amatax.streaming.processes import own_device
from amatax.streaming.ranks import Ranks

if TYPE_CHECKING:
    from amatax.publishing.push import Pushed
    from amatax.publishing.shipping import Shipping
    from amatax.streaming.stream import Streamer
    from amatax.writing.verification import Verdict


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
        pushed: what is on the Hub, if it was pushed; the first rank alone knows.
    """

    plan: Plan
    output: Path
    already: bool = False
    shards_kept: int = 0
    seconds: float = 0.0
    rounded_away: float | None = None
    notes: list[str] = field(default_factory=list)
    pushed: Pushed | None = None


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

    Several processes started by torchrun divide the shards; each of them returns when the folder is whole, or raises the same error.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder to write; wins over the recipe's output.path.
        device: cpu, cuda, cuda:N, several GPUs as cuda:0,cuda:1, or auto.
        threads: workers; the cores of this process by default, divided by torchrun's processes of this machine.
        overwrite: replace another model in the output folder.
        allow_nonfinite: merge NaN and infinities as they come.
        stream: of Hub models read the tensors over the network, and keep no copy of their weights on the disk.
        push_to: a repository on the Hub (owner/name) to push to. With `stream` each shard goes there as soon as it is finished,
            and nothing is left in the output folder.
        push_options: as of `push`.

    Raises:
        AmataxError: see amatax.errors.
    """
    with joined() as ranks:
        watcher = watcher or Watcher()
        result = _merge(
            ranks,
            recipe,
            output,
            device,
            threads,
            overwrite,
            allow_nonfinite,
            stream,
            push_to,
            push_options or {},
            RanksWatcher(watcher, ranks) if ranks.world > 1 else watcher,
        )
    if push_to and result.pushed is None and ranks.rank == 0:
        result.pushed = push(result.output, push_to, watcher=watcher, **(push_options or {}))
    return result


def _merge(
    ranks: Ranks,
    recipe: RecipeSource,
    output: str | PathLike[str] | None,
    device: str,
    threads: int | None,
    overwrite: bool,
    allow_nonfinite: bool,
    stream: bool,
    push_to: str | None,
    push_options: Mapping[str, Any],
    watcher: Watcher,
) -> MergeResult:
    """By this rank and all others; each makes the same plan, for itself."""

    def begin() -> tuple[Plan, Path]:
        known = as_recipe(recipe)
        if push_to and stream and ranks.world > 1:
            message = "several processes do not send shards to the Hub while they merge (--stream with --push)"
            raise OutputError(message, "leave --stream away, or merge with one process")
        if push_to and ranks.rank == 0:
            check_push(known, push_to, **push_options)
        planned = planned_from_headers(known, output, overwrite=overwrite, stream=stream, push_to=push_to)
        if planned.output is None:
            hint = "add `output: {path: FOLDER}` to the recipe, or name the folder after the recipe"
            raise OutputError("no output folder was named", hint)
        return planned, planned.output

    planned, folder = ranks.in_turn(begin)
    check_same(ranks, planned, overwrite=overwrite, allow_nonfinite=allow_nonfinite, stream=stream)
    if ranks.from_first(planned.found.value) == State.SAME.value and not overwrite:
        ranks.first(lambda: _already(planned, folder, device, threads, allow_nonfinite, watcher))
        return MergeResult(planned, folder, already=True, notes=planned.notes)

    shipping = _shipping(planned, push_to, push_options, watcher) if push_to and stream else None
    if shipping is not None and not overwrite and shipping.already():
        from amatax.writing.workplace import discard

        discard(planned, folder.resolve())
        shipping.clear()
        return MergeResult(planned, folder, already=True, notes=planned.notes, pushed=shipping.pushed)
    planned = _fetched(ranks, planned, stream, overwrite, watcher)
    streamer = ranks.each(lambda: _streamer(planned, own_device(device), threads, allow_nonfinite, watcher))
    from amatax.writing.record import rounded_away
    from amatax.writing.writer import write_model

    started = time.perf_counter()
    kept = 0

    def resumed(done: Sequence[str], discarded: str) -> None:
        nonlocal kept
        kept = len(done)
        if discarded:
            watcher.say(discarded)
        elif kept:
            watcher.say(f"continuing: {kept} of {len(planned.shards)} shards are finished")
        todo = [name for shard in planned.shards if shard.file not in done for name in shard.offsets]
        watcher.start(sum(planned.tensors[name].reads for name in todo))

    entries = write_model(
        planned,
        folder,
        streamer,
        overwrite=overwrite,
        resumed=resumed,
        wait=watcher.wait,
        carrier=shipping,
        ranks=ranks,
    )
    seen = None
    if entries is not None:
        seen = {"notes": _seen(planned, entries, ranks.world), "rounded_away": rounded_away(entries)}
    seen = ranks.from_first(seen)
    result = MergeResult(
        planned,
        folder,
        shards_kept=kept,
        seconds=time.perf_counter() - started,
        rounded_away=seen["rounded_away"],
        notes=[*planned.notes, *seen["notes"]],
    )
    if shipping is not None:
        shipping.clear()
        result.pushed = shipping.pushed
    return result


def _seen(planned: Plan, entries: Sequence[Mapping[str, Any]], world: int) -> list[str]:
    """What to note after the merge."""
    notes = []
    if differing := [name for entry in entries for name in entry["differs"]]:
        notes.append(
            f"{len(differing)} integer tensors differ between the models; sft's are kept, first {differing[0]!r}"
        )
    if len(planned.shards) < world:
        notes.append(
            f"{world} ranks and {len(planned.shards)} shard(s): a rank takes whole shards, and "
            f"{world - len(planned.shards)} had nothing to do; with a smaller output.max_shard_size all of them help"
        )
    return notes


def _already(
    planned: Plan, folder: Path, device: str, threads: int | None, allow_nonfinite: bool, watcher: Watcher
) -> None:
    """A finished folder, if it was merged from these very inputs."""
    from amatax.writing.workplace import tidy

    if _touched_since(planned, folder / RECORD):
        planned = downloaded(planned, watcher)
        watcher.say("input files are newer than the output: comparing their checksums")
        _same_inputs(planned, folder, _streamer(planned, device, threads, allow_nonfinite, watcher)(), watcher)
    tidy(folder)


def _fetched(ranks: Ranks, planned: Plan, stream: bool, overwrite: bool, watcher: Watcher) -> Plan:
    """The plan with every file here that is read from here."""
    if stream:
        ranks.first(lambda: fetch_side_files(planned.side_files.values(), planned.checkpoints.values()))
        return planned
    return ranks.in_turn(lambda: downloaded(planned, watcher, overwrite=overwrite))


def _shipping(planned: Plan, repo: str, options: Mapping[str, Any], watcher: Watcher) -> Shipping:
    from amatax.publishing.push import PushOptions, check_push
    from amatax.publishing.shipping import Shipping

    wishes = PushOptions(**options)
    target = check_push(planned.recipe.models.references(), repo, wishes)
    return Shipping(planned, repo, target, wishes, watcher.say)


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


def _streamer(
    planned: Plan, device: str, threads: int | None, allow_nonfinite: bool, watcher: Watcher
) -> Callable[[], Streamer]:
    """torch is imported here, after everything that can go wrong without it has gone right."""
    with importing_torch():
        from amatax.streaming.stream import Streamer, pick_devices

    where = pick_devices(device)
    count = threads or default_threads()
    return lambda: Streamer(planned, where, count, allow_nonfinite=allow_nonfinite, advance=watcher.advance)


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
