"""amatax sweep: every measure at every point, with one model in memory, written down as it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.errors import DataError, OutputError
from amatax.evaluation.choice import check_halves
from amatax.evaluation.fits import check_fits, fit_facts, fit_points, with_fits
from amatax.evaluation.journal import Journal, Known
from amatax.evaluation.measuring import Measuring, Opening, Task, check_ends
from amatax.evaluation.memory import LiveBytes, live_bytes
from amatax.evaluation.points import Wanted, with_ratios
from amatax.evaluation.predicting import MOST_PROPOSED, Foretold, Predicting, foretell, proposed_points
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Results
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
        proposals: merges that a surrogate will propose, to be measured after those points.
        notes: what a careful user wants to know.
    """

    points: Sequence[Wanted]
    fits: Sequence[str]
    samples: Mapping[str, int]
    left: Sequence[tuple[str, str]]
    memory: LiveBytes
    proposals: int = 0
    notes: Sequence[str] = ()

    @property
    def samples_left(self) -> int:
        """Samples that will be put to a model, at most: what each of them costs is the measure's."""
        return sum(self.samples[measure] for _, measure in self.left) + self.proposals * sum(self.samples.values())


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        results: the table.
        recipes: by point: what `amatax merge` makes it of.
        measured: how many (point, measure) this run measured; the others were known.
        notes: what a careful user wants to know.
        foretold: what a surrogate predicted, and how well.
        outcome: what was chosen, and the files that tell of it.
    """

    results: Results
    recipes: Mapping[str, Recipe]
    measured: int
    notes: list[str] = field(default_factory=list)
    foretold: Foretold | None = None
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
    predicting: Predicting | None = None,
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
        predicting: a surrogate, whose points are measured too, and after them those that it proposes.

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
        opening = Opening(
            device,
            options.dtype,
            options.threads,
            options.trust_remote_code,
            beside=options.beside,
            opened=options.opened,
        )
        measuring = Measuring(plan, tasks, journal, opening, watcher, options.requirements)
        later = 0 if predicting is None else MOST_PROPOSED * sum(task.samples for task in tasks)
        results, foretold = measuring.measure(points, later), None
        if predicting is not None:
            proposed, why_not = proposed_points(recipe, predicting, results, options.requirements)
            points = [*points, *(point for point, _ in proposed)]
            results = measuring.measure(points)
            foretold = foretell(results, predicting, proposed, why_not)
        recipes = {point.name: point.recipe for point in points if point.recipe is not None}
        return Swept(results, recipes, measuring.runs, notes, foretold)


def preview(
    recipe: Recipe,
    source: Path | None,
    plan: Plan,
    points: Sequence[Wanted],
    tasks: Sequence[Task],
    folder: Path,
    options: SweepOptions,
    predicting: Predicting | None = None,
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
        check_ends(points, tasks, journal, options.requirements)
    names = [task.measure.name for task in tasks]
    return Preview(
        points,
        [point.name for point in points if point.fitting is not None and point.name not in fits],
        {task.measure.name: task.samples for task in tasks},
        [(point.name, name) for point in points for name in names if (point.name, name) not in known],
        live_bytes(plan, options.dtype)._replace(beside=options.beside),
        0 if predicting is None else MOST_PROPOSED,
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
