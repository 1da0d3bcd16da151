"""sweep: the reward-tax front, without writing a single model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.api.common import RecipeSource, Watcher, as_recipe
from amatax.api.evaluating import computed_in, room_of, sft_loader, wishes, without_path
from amatax.api.planning import downloaded
from amatax.errors import MissingExtraError
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.schema import Recipe

if TYPE_CHECKING:
    from amatax.evaluation.declared import Declared
    from amatax.evaluation.likelihoods import Sft
    from amatax.evaluation.live import LiveModel
    from amatax.evaluation.measuring import Task
    from amatax.evaluation.points import Wanted
    from amatax.evaluation.predicting import Predicting
    from amatax.evaluation.requirements import Requirement
    from amatax.evaluation.sweeping import Preview, SweepOptions, Swept

OpenTasks = Callable[..., Sequence[Any]]  # as amatax.evaluation.tasks.open_tasks


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    source: Path | None
    plan: Plan
    points: list[Wanted]
    tasks: list[Task]
    declared: Sequence[Declared]
    requirements: Sequence[Requirement]
    folder: Path
    options: SweepOptions
    predicting: Predicting | None


def sweep(
    recipe: RecipeSource, output: str | PathLike[str], *, watcher: Watcher | None = None, **options: Any
) -> Swept:
    """Measure merges of a recipe's models, made in memory one after another; an interrupted sweep continues.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder of the results, with the journal of what is measured already.
        options: those of `preview_sweep`.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from dataclasses import replace

    from amatax.evaluation.sweeping import sweep_job

    watcher = watcher or Watcher()
    job = _job(recipe, output, watcher, **options)
    swept = sweep_job(
        job.recipe,
        job.source,
        job.plan,
        job.points,
        job.tasks,
        job.folder,
        job.options,
        watcher,
        job.predicting,
    )
    from amatax.evaluation.outcome import write_outcome
    from amatax.streaming.stream import pick_device

    device = str(pick_device(job.options.device))
    outcome = write_outcome(
        swept.results,
        swept.recipes,
        job.folder,
        job.plan,
        job.source,
        job.declared,
        job.requirements,
        device,
        swept.foretold,
        notes=swept.notes,
    )
    return replace(swept, outcome=outcome)


def preview_sweep(
    recipe: RecipeSource, output: str | PathLike[str], *, watcher: Watcher | None = None, **options: Any
) -> Preview:
    """What a sweep will do: its points, its fits, how many samples, and what memory.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder of the results.
        options: `alpha` and `fit_alpha` ("0:1:0.1"), `ways` (of evaluation.points.WAYS), `blocks`, `grid` ("0,0.5,1"); `surrogate`, how
            many merges a quadratic in the blocks' ratios is fitted to (without `ways` nothing else is measured, but for its proposals);
            `data`, `keep` and `keep_weight` of the fits; `device`, `batch_size`, `threads`, `trust_remote_code`, `overwrite`; `reward`, `lm_eval_tasks`;
            `measures`, a file of them instead of the recipe's; `require`, what the chosen merge must hold ("reward >= 0.9*rlhf");
            `allow_overlap`, prompts may be fitted and measured; `open_tasks`, what makes tasks, for measures of one's own.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.evaluation.sweeping import preview

    job = _job(recipe, output, watcher or Watcher(), **options)
    return preview(job.recipe, job.source, job.plan, job.points, job.tasks, job.folder, job.options, job.predicting)


def _job(
    recipe: RecipeSource,
    output: str | PathLike[str],
    watcher: Watcher,
    *,
    alpha: str = "0:1:0.1",
    ways: Sequence[str] | None = None,
    blocks: Sequence[int] = (),
    grid: str = "",
    surrogate: int = 0,
    fit_alpha: str = "",
    data: str | PathLike[str] | None = None,
    keep: str | PathLike[str] | None = None,
    keep_weight: float | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    threads: int | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    reward: str | None = None,
    lm_eval_tasks: str | PathLike[str] | None = None,
    measures: str | PathLike[str] | None = None,
    require: Sequence[str] = (),
    allow_overlap: bool = False,
    open_tasks: OpenTasks | None = None,
) -> _Job:
    """Everything that a sweep is, made ready; faults that the recipe and the headers show come first."""
    from amatax.evaluation.declared import declared_measures
    from amatax.evaluation.overlap import check_overlap
    from amatax.evaluation.points import numbers, one_count, wanted_points
    from amatax.evaluation.predicting import plan_surrogate
    from amatax.evaluation.requirements import parse_requirement
    from amatax.evaluation.sweeping import SweepOptions, any_plan, check_points
    from amatax.fitting.libraries import import_libraries
    from amatax.fitting.options import FitOptions

    source = Path(recipe) if isinstance(recipe, str | PathLike) else None
    loaded = without_path(as_recipe(recipe))
    declared = [] if open_tasks else declared_measures(wishes({str(recipe): loaded}, measures))
    points = wanted_points(
        loaded,
        numbers(alpha, "--alpha"),
        ways if ways is not None else () if surrogate else ("uniform",),
        blocks=blocks,
        grid=numbers(grid, "--grid") if grid else (),
        fit_alphas=numbers(fit_alpha, "--fit-alpha") if fit_alpha else (),
    )
    if find_spec("matplotlib") is None:
        raise MissingExtraError("a sweep draws its fronts with matplotlib", 'pip install "amatax[evaluate]"')
    plan = make_plan(any_plan(loaded), remote=True)
    predicting = plan_surrogate(loaded, one_count(loaded, blocks), surrogate) if surrogate else None
    points += predicting.points if predicting is not None else ()
    check_points(points, plan)
    plan = downloaded(plan, watcher)
    import_libraries()
    from amatax.evaluation.live import holds_sft

    live: list[LiveModel] = []
    sft = sft_loader(
        loaded.models.sft, declared, [plan.checkpoints[loaded.output.tokenizer]], device, trust_remote_code
    )
    beside = plan.checkpoints["sft"].nbytes if sft is not None else 0
    if sft is not None and holds_sft(plan, computed_in(device)):
        sft, beside = (lambda: live[-1].sft()), 0  # no further model
    tasks = _tasks(
        open_tasks, plan, loaded, declared, sft, device, batch_size, reward, lm_eval_tasks, trust_remote_code
    )
    requirements = [parse_requirement(text, {task.measure.name: task.measure for task in tasks}) for text in require]
    fit = FitOptions(
        data=data,
        keep=keep,
        keep_weight=keep_weight,
        seed=seed,
        device=device,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    notes = check_overlap(loaded, source, points, fit, declared, allowed=allow_overlap)
    options = SweepOptions(
        fit,
        device,
        computed_in(device),
        threads,
        trust_remote_code,
        overwrite,
        requirements,
        notes,
        beside=beside,
        opened=live.append,
    )
    return _Job(loaded, source, plan, points, list(tasks), declared, requirements, Path(output), options, predicting)


def _tasks(
    opener: OpenTasks | None,
    plan: Plan,
    recipe: Recipe,
    declared: Sequence[Declared],
    sft: Sft | None,
    device: str,
    batch_size: int,
    reward: str | None,
    lm_eval_tasks: str | PathLike[str] | None,
    trust_remote_code: bool,
) -> Sequence[Task]:
    """The measures of the recipe's models; they share one tokenizer."""
    from amatax.evaluation.tasks import open_tasks
    from amatax.fitting.tokens import open_tokenizer

    described = plan.checkpoints[recipe.output.tokenizer]
    return (opener or open_tasks)(
        declared,
        tokenizer=open_tokenizer(described, trust_remote_code=trust_remote_code),
        sft=sft,
        device=device,
        batch_size=batch_size,
        reward=reward,
        room=room_of(described),
        trust_remote_code=trust_remote_code,
        lm_eval_tasks=lm_eval_tasks,
    )
