"""amatax sweep: every measure at every point, with one model in memory, written down as it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from amatax.errors import AmataxError, DataError, OutputError
from amatax.evaluation.choice import check_halves, check_shares
from amatax.evaluation.fits import check_fits, fit_facts, fit_points, with_fits
from amatax.evaluation.journal import Journal, Known
from amatax.evaluation.memory import LiveBytes, live_bytes
from amatax.evaluation.points import Wanted, with_ratios
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Measure, Measured, Point, Results
from amatax.fitting.identity import fingerprint
from amatax.fitting.options import FitOptions
from amatax.fitting.sampling import Watching
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.schema import Ratios, Recipe

if TYPE_CHECKING:
    import torch

    from amatax.evaluation.live import LiveModel
    from amatax.evaluation.outcome import Outcome

JOURNAL, FITS = "journal.jsonl", "fits"
Tick = Callable[[int], None]  # told the samples that are done since it was told last


class Task(Protocol):
    """Something that is measured of a model."""

    @property
    def measure(self) -> Measure:
        """What comes out."""

    @property
    def samples(self) -> int:
        """How many it takes."""

    @property
    def run(self) -> Callable[[Any, Tick], Measured]:
        """Of a transformers model in evaluation mode, on its device."""

    @property
    def names(self) -> Sequence[str]:
        """Of the samples, where they are known beforehand."""


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs.

    Attributes:
        fit: of the fitted points, but for alpha and blocks, which they say themselves.
        device: cpu, cuda, cuda:N, or auto.
        dtype: that is computed in; the output's by default.
        threads: that merge; by default the cores, up to a point.
        trust_remote_code: let transformers run the checkpoint's own code.
        overwrite: measure everything again.
        requirements: what the chosen merge must hold; what they need is looked at as soon as it can be.
        notes: of what was found before, for the report.
        beside: bytes of other weights that the measures load.
        opened: told the live model, once it is there.
    """

    fit: FitOptions = field(default_factory=FitOptions)
    device: str = "auto"
    dtype: torch.dtype | None = None
    threads: int | None = None
    trust_remote_code: bool = False
    overwrite: bool = False
    requirements: Sequence[Requirement] = ()
    notes: Sequence[str] = ()
    beside: int = 0
    opened: Callable[[LiveModel], None] = lambda live: None


@dataclass(frozen=True)
class Preview:
    """What a sweep will do.

    Attributes:
        points: all of them.
        fits: the names of those that are still to be fitted.
        samples: by measure, of one point.
        left: (point, measure) that are not measured yet.
        memory: of the weights, in bytes; activations come on top.
        notes: what a careful user wants to know.
    """

    points: Sequence[Wanted]
    fits: Sequence[str]
    samples: Mapping[str, int]
    left: Sequence[tuple[str, str]]
    memory: LiveBytes
    notes: Sequence[str] = ()

    @property
    def samples_left(self) -> int:
        """Samples that will be put to a model: what each of them costs is the measure's."""
        return sum(self.samples[measure] for _, measure in self.left)


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        results: the table.
        recipes: by point: what `amatax merge` makes it of.
        measured: how many (point, measure) this run measured; the others were known.
        notes: what a careful user wants to know.
        outcome: what was chosen, and the files that tell of it.
    """

    results: Results
    recipes: Mapping[str, Recipe]
    measured: int
    notes: list[str] = field(default_factory=list)
    outcome: Outcome | None = None


def sweep_job(
    recipe: Recipe,
    source: Path | None,
    plan: Plan,
    points: Sequence[Wanted],
    tasks: Sequence[Task],
    folder: Path,
    options: SweepOptions,
    watcher: Watching,
) -> Swept:
    """Measure every task at every point; what the folder's journal knows already is not measured again.

    Args:
        recipe: whose models are merged.
        source: its file.
        plan: of some merge of the recipe's, its files here.
        points: see evaluation.points.
        tasks: what is measured.
        folder: of the journal and the fitted recipes; it is made if it is not there.
        watcher: told the samples that are to be measured, and those that are done.

    Raises:
        OutputError: if the journal was written under another recipe, checkpoint or data file, naming it.
        AmataxError: see amatax.errors.
    """
    check_points(points, plan)
    check_fits(recipe, source, points, options.fit, plan)
    notes = [*options.notes, *_check_samples(tasks, options.requirements)]
    folder = make_folder(folder)
    with closing(Journal(folder / JOURNAL, overwrite=options.overwrite)) as journal:
        device = _device(options)
        for name, value in _facts(recipe, plan, device, tasks).items():
            journal.fact(name, value)
        points = fit_points(recipe, source, points, options.fit, plan, journal, folder / FITS, watcher)
        weights = {}
        for name, value in _point_facts(points).items():
            journal.fact(name, value)
        for point in points:
            assert point.recipe is not None
            weights[point.name] = _weights(make_plan(point.recipe))
        measured = _measure(points, weights, tasks, plan, journal, device, options, watcher)
        recipes = {point.name: point.recipe for point in points if point.recipe is not None}
        return Swept(_results(points, tasks, journal), recipes, measured, notes)


def preview(
    recipe: Recipe,
    source: Path | None,
    plan: Plan,
    points: Sequence[Wanted],
    tasks: Sequence[Task],
    folder: Path,
    options: SweepOptions,
) -> Preview:
    """What a sweep will do; nothing is written, and a run that is at work there is not in the way.

    Raises:
        OutputError: where the sweep would refuse to go on with what the folder's journal knows.
        AmataxError: for what else can be told to go wrong.
    """
    check_points(points, plan)
    check_fits(recipe, source, points, options.fit, plan)
    notes = [*options.notes, *_check_samples(tasks, options.requirements)]
    known: set[tuple[str, str]] = set()
    fits: set[str] = set()
    if not options.overwrite:
        journal = Known(folder / JOURNAL)
        known, fits = set(journal.measured), set(journal.fits)
        facts = {
            **_facts(recipe, plan, _device(options), tasks),
            **fit_facts(recipe, source, points, options.fit, plan),
            **_point_facts(with_fits(recipe, points, journal.fits)),
        }
        for name, value in facts.items():
            journal.check(name, value)
        _check_shares(points, tasks, journal, options.requirements)
    names = [task.measure.name for task in tasks]
    return Preview(
        points,
        [point.name for point in points if point.fitting is not None and point.name not in fits],
        {task.measure.name: task.samples for task in tasks},
        [(point.name, name) for point in points for name in names if (point.name, name) not in known],
        live_bytes(plan, options.dtype)._replace(beside=options.beside),
        notes,
    )


def check_points(points: Sequence[Wanted], plan: Plan) -> None:
    """Plan every point that is known, so that what is wrong with one is said before the first is measured.

    Raises:
        PlanError: for more blocks than layers, and the like.
    """
    for point in points:
        if point.recipe is not None:
            make_plan(point.recipe, remote=True)


def make_folder(folder: Path) -> Path:
    """The output folder.

    Raises:
        OutputError: if none can be there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}", "name another folder with -o") from None
    return folder


def any_plan(recipe: Recipe) -> Recipe:
    """The recipe with ratios at which every model is read, whatever the method copies: what headers are looked at with."""
    words = recipe.merge.resolved_ratios()
    return with_ratios(recipe, words or Ratios(blocks=[0.5]))


def _facts(recipe: Recipe, plan: Plan, device: torch.device, tasks: Sequence[Task]) -> dict[str, Any]:
    """What every number depends on, beside its point."""
    output = recipe.output.model_dump(mode="json", include={"dtype", "tokenizer", "config"})
    found: dict[str, Any] = {f"model {role}": fingerprint(c) for role, c in sorted(plan.checkpoints.items())}
    found |= {"output": output, "recipe": recipe.merge.model_dump(mode="json"), "device": device.type}
    for measure in (task.measure for task in tasks):
        said = {"kind": measure.kind, "higher": measure.higher, "settings": dict(measure.settings)}
        found[f"measure {measure.name}"] = said
    return found


def _point_facts(points: Sequence[Wanted]) -> dict[str, Any]:
    """What merge each point is that is known."""
    return {
        f"point {point.name}": point.recipe.merge.model_dump(mode="json")
        for point in points
        if point.recipe is not None
    }


def _device(options: SweepOptions) -> torch.device:
    from amatax.streaming.stream import pick_device

    return pick_device(options.device)


def _weights(plan: Plan) -> str:
    """The same for two merges of the same weights, whatever they are called."""
    merge = [plan.recipe.merge.method, plan.recipe.merge.options]
    made = [(t.name, t.copy_of or [*merge, t.ratio]) for t in plan.tensors.values()]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _measure(
    points: Sequence[Wanted],
    weights: Mapping[str, str],
    tasks: Sequence[Task],
    plan: Plan,
    journal: Journal,
    device: torch.device,
    options: SweepOptions,
    watcher: Watching,
) -> int:
    """Every pair that is missing, in order; how many were run. Points of the same weights are measured once."""
    from amatax.evaluation.answering import fingerprint as fingerprint_of
    from amatax.evaluation.live import LiveModel
    from amatax.fitting.memory import memory_hint

    known: dict[tuple[str, str], Measured] = {}  # by (weights, measure)
    for (name, measure), found in journal.measured.items():
        if name in weights:
            known[weights[name], measure] = found
    sizes = {task.measure.name: task.samples for task in tasks}
    left = {(weight, measure) for weight in weights.values() for measure in sizes} - known.keys()

    def tick(samples: int) -> None:
        watcher.advance(samples)
        watcher.wait()

    live: LiveModel | None = None
    unchanged, runs = b"", 0
    for point in points:
        pending = [task for task in tasks if (point.name, task.measure.name) not in journal.measured]
        if any((weights[point.name], task.measure.name) not in known for task in pending):
            if live is None:
                watcher.say("loading the models")
                live = LiveModel.open(
                    plan,
                    device,
                    dtype=options.dtype,
                    trust_remote_code=options.trust_remote_code,
                    threads=options.threads,
                    beside=options.beside,
                )
                options.opened(live)
                live.check()
                watcher.start(sum(sizes[measure] for _, measure in left))
            assert point.recipe is not None
            live.set(point.recipe)
            unchanged = fingerprint_of(live.model)
        for task in pending:
            same = (weights[point.name], task.measure.name)
            if same not in known:
                assert live is not None
                hint = "take a smaller --batch-size: the same command continues with what is done"
                with memory_hint(f"measuring {task.measure.name} at {point.name} on {device}", hint):
                    found = _checked(task, task.run(live.model.eval(), tick), point.name)
                if fingerprint_of(live.model) != unchanged:
                    raise AmataxError(
                        f"{task.measure.name} at {point.name} has written to the model's weights",
                        "mend the measure, or the model's own code; the same command continues with what is done",
                    )
                known[same] = found
                runs += 1
            journal.add(point.name, task.measure.name, known[same])
        if point.kind == "rlhf":
            _check_shares(points, tasks, journal, options.requirements)
    return runs


def _check_samples(tasks: Sequence[Task], requirements: Sequence[Requirement]) -> list[str]:
    """Whether one half of the samples can choose and the other report; where nothing is required, a note says that it cannot.

    Raises:
        DataError: for too few samples to hold a requirement against.
    """
    try:
        check_halves({task.measure.name: task.names for task in tasks if task.names})
    except DataError as error:
        if requirements:
            raise
        return [f"nothing will be chosen: {error.message}"]
    return []


def _check_shares(
    points: Sequence[Wanted], tasks: Sequence[Task], journal: Known, requirements: Sequence[Requirement]
) -> None:
    """Whether the requirements say something, once SFT and RLHF are measured.

    Raises:
        DataError: see amatax.evaluation.choice.check_shares.
    """
    ends = [point for point in points if point.kind in ("sft", "rlhf")]
    if all((point.name, task.measure.name) in journal.measured for point in ends for task in tasks):
        check_shares(_results(ends, tasks, journal), requirements)


def _checked(task: Task, found: Measured, point: str) -> Measured:
    """What a task gave, if it can be a measure's.

    Raises:
        AmataxError: for sums of another shape than samples.
    """
    if found.sums.ndim != 2 or len(found.sums) != len(found.samples):
        raise AmataxError(
            f"{task.measure.name} at {point}: sums of shape {found.sums.shape} for {len(found.samples)} samples",
            "a measure gives (samples, columns)",
        )
    return found


def _results(points: Sequence[Wanted], tasks: Sequence[Task], journal: Known) -> Results:
    """The table, from the journal alone."""
    names = [task.measure.name for task in tasks]
    table = [
        Point(point.name, point.kind, point.alpha, point.ratios, {n: journal.measured[point.name, n] for n in names})
        for point in points
    ]
    return Results({task.measure.name: task.measure for task in tasks}, tuple(table))
