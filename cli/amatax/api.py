"""The public verbs. The only module that sees every stage; the command line and scripts both come through here."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import CheckpointError, OutputError
from amatax.planning.destination import RECIPE, RECORD, State
from amatax.planning.memory import default_threads
from amatax.planning.names import Anatomy, anatomy
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Recipe, is_folder

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillResult
    from amatax.fitting.job import FitResult
    from amatax.streaming.differences import Difference
    from amatax.streaming.stream import Streamer
    from amatax.writing.verification import Verdict

__all__ = [
    "Inspection",
    "MergeResult",
    "Watcher",
    "difference",
    "distill",
    "fit_ratios",
    "inspect",
    "load_recipe",
    "merge",
    "plan",
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
    """

    plan: Plan
    output: Path
    already: bool = False
    shards_kept: int = 0
    seconds: float = 0.0
    rounded_away: float | None = None
    notes: list[str] = field(default_factory=list)


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
    """Find out from headers alone what a merge will do, or everything that is wrong with it.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder to write; wins over the recipe's output.path.
        overwrite: another model may stand in the output folder.

    Raises:
        RecipeError, PlanError: with all faults.
    """
    return make_plan(_recipe(recipe), Path(output) if output is not None else None, overwrite=overwrite)


def merge(
    recipe: RecipeSource,
    output: str | PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
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

    Raises:
        AmataxError: see amatax.errors.
    """
    watcher = watcher or Watcher()
    planned = plan(recipe, output, overwrite=overwrite)
    if planned.output is None:
        hint = "add `output: {path: FOLDER}` to the recipe, or name the folder after the recipe"
        raise OutputError("no output folder was named", hint)
    if planned.found is State.SAME and not overwrite:
        from amatax.writing.workplace import tidy

        if _touched_since(planned, planned.output / RECORD):
            watcher.say("input files are newer than the output: comparing their checksums")
            _same_inputs(
                planned, planned.output, _streamer(planned, device, threads, allow_nonfinite, watcher)(), watcher
            )
        tidy(planned.output)
        return MergeResult(planned, planned.output, already=True, notes=planned.notes)

    streamer = _streamer(planned, device, threads, allow_nonfinite, watcher)
    from amatax.writing.record import rounded_away
    from amatax.writing.workplace import Workplace
    from amatax.writing.writer import write_model

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
        planned.output,
        streamer,
        overwrite=overwrite,
        resumed=resumed,
        wait=watcher.wait,
    )
    notes = list(planned.notes)
    if differing := [name for entry in entries for name in entry["differs"]]:
        notes.append(
            f"{len(differing)} integer tensors differ between the models; sft's are kept, first {differing[0]!r}"
        )
    return MergeResult(
        planned,
        planned.output,
        shards_kept=kept,
        seconds=time.perf_counter() - started,
        rounded_away=rounded_away(entries),
        notes=notes,
    )


def inspect(model: str | PathLike[str]) -> Inspection:
    """Open a checkpoint (a folder or a Hub id) by its headers and place its tensors.

    Raises:
        CheckpointError, HubError
    """
    name = str(model)
    checkpoint = open_checkpoint(f"./{name}" if Path(name).is_dir() and not is_folder(name) else name)
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


def distill(
    recipe: RecipeSource,
    prompts: str | PathLike[str],
    output: str | PathLike[str],
    *,
    role: str = "rlhf",
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    raw: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    server: str | None = None,
    server_model: str | None = None,
    concurrency: int = 16,
    retries: int = 5,
    timeout: float = 600.0,
    reward: str | None = None,
    reward_model: str | None = None,
    top: int | None = None,
    draw: int | None = None,
    most_bad: float = 0.0,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> DistillResult:
    """Sample the proxy set D_theta of AMA (arXiv 2309.06256, Eq. 7): responses of the recipe's RLHF model to prompts.

    An interrupted run continues from its journal beside the output; the same run again ends at once.

    Args:
        recipe: a Recipe, a YAML file, or a mapping; one of its models answers, with the tokenizer of `output.tokenizer`.
        prompts: JSONL of `prompt` or `messages`.
        output: the JSONL file to write.
        role: which model answers: rlhf, or sft for what `fit_ratios` is to keep.
        n, temperature, top_p, max_new_tokens, seed, raw: see amatax.fitting.sampling.Sampling.
        batch_size: samples at a time, for the model and for a reward model.
        device: cpu, cuda, cuda:N, or auto.
        server: the URL of an OpenAI-compatible server that answers instead.
        server_model: its name there; the only one by default.
        concurrency, retries, timeout: see amatax.fitting.serving.Server.
        reward: FILE.py:function, a function (prompt, response) -> float.
        reward_model: a folder or Hub id of a sequence-classification model with one label.
        top: keep so many with the highest rewards.
        draw: of those, draw so many.
        most_bad: the share of bad lines in `prompts` that are skipped.
        overwrite: replace another file at `output`, or other unfinished work.

    Raises:
        AmataxError: see amatax.errors.
    """
    from amatax.fitting.distilling import Options, distil
    from amatax.fitting.sampling import Sampling
    from amatax.fitting.selection import Selection

    options = Options(
        sampling=Sampling(n, temperature, top_p, max_new_tokens, seed, raw),
        selection=Selection(top, draw),
        role=role,
        batch_size=batch_size,
        device=device,
        server=server,
        server_model=server_model,
        concurrency=concurrency,
        retries=retries,
        timeout=timeout,
        reward=reward,
        reward_model=reward_model,
        most_bad=most_bad,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    return distil(_recipe(recipe), Path(prompts), Path(output), options, watcher or Watcher())


def fit_ratios(
    recipe: RecipeSource,
    output: str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    alpha: float | Sequence[float] = (),
    keep: str | PathLike[str] | None = None,
    max_kl: float | Sequence[float] = (),
    keep_weight: float | None = None,
    blocks: int | None = None,
    groups: bool = False,
    free_head: bool = False,
    weigh_by_layers: bool = False,
    holdout: float | str | PathLike[str] | None = None,
    max_length: int | None = 2048,
    most_bad: float = 0.0,
    raw: bool = False,
    seed: int = 0,
    device: str = "auto",
    compute: str | None = None,
    batch_tokens: int = 4096,
    checkpointing: bool = False,
    picture: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> FitResult:
    """Fill in a recipe's ratios by maximum likelihood on responses of the RLHF model (AMA, arXiv 2309.06256, Eq. 8).

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the recipe to write; with several alphas NAME-ALPHA.yaml beside it.
        picture: a PNG to draw; with several alphas NAME-ALPHA.png beside it.
        data, blocks, ...: see amatax.fitting.job.Options.
        alpha: the mean share of RLHF that is held, or several; with `keep` it is found, unless it is given.
        keep, max_kl, keep_weight: a tax-aware fit (beyond the paper): what SFT says there may change by so much.

    Raises:
        AmataxError: see amatax.errors.
    """
    from amatax.fitting.job import Options, fit_job

    watcher = watcher or Watcher()
    png = Path(picture) if picture is not None else None
    if png is not None and (png.suffix.lower() != ".png" or not png.resolve().parent.is_dir()):
        raise OutputError(f"{png}: no PNG file can be written there", "name a .png in a folder that exists")
    loaded = _recipe(recipe)
    source = Path(recipe) if isinstance(recipe, str | PathLike) else None
    result = fit_job(
        loaded,
        source.read_text(encoding="utf-8") if source else "",
        source,
        Path(output),
        Options(
            data=Path(data) if data is not None else None,
            alphas=tuple(alpha) if isinstance(alpha, Sequence) else (alpha,),
            keep=Path(keep) if keep is not None else None,
            max_kl=tuple(max_kl) if isinstance(max_kl, Sequence) else (max_kl,),
            keep_weight=keep_weight,
            blocks=blocks,
            groups=groups,
            free_head=free_head,
            weigh_by_layers=weigh_by_layers,
            holdout=Path(holdout) if isinstance(holdout, str | PathLike) else holdout,
            max_length=max_length,
            raw=raw,
            most_bad=most_bad,
            seed=seed,
            device=device,
            compute=compute,
            batch_tokens=batch_tokens,
            checkpointing=checkpointing,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
        ),
        start=watcher.start,
        advance=watcher.advance,
        wait=watcher.wait,
        say=watcher.say,
    )
    if png is not None:
        from amatax.fitting.picture import draw

        for fitted in result.fits:
            which = fitted.recipe.stem.removeprefix(Path(output).stem) if len(result.fits) > 1 else ""
            draw(fitted.fit, png.with_name(f"{png.stem}{which}.png"))
    return result


def _streamer(
    planned: Plan, device: str, threads: int | None, allow_nonfinite: bool, watcher: Watcher
) -> Callable[[], Streamer]:
    """torch is imported here, after everything that can go wrong without it has gone right."""
    # Ctrl-C waits for the second this takes: an exception in the middle of torch's C++ part ends the process with SIGABRT
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # which is not needed
            from amatax.streaming.stream import Streamer, pick_device
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    where = pick_device(device)
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
