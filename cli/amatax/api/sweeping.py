"""sweep: the reward-tax front, without writing a single model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.api.common import RecipeSource, Watcher, as_recipe
from amatax.api.planning import downloaded
from amatax.errors import AmataxError
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.schema import Recipe

if TYPE_CHECKING:
    from amatax.evaluation.points import Wanted
    from amatax.evaluation.sweeping import Preview, SweepOptions, Swept, Task

OpenTasks = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    source: Path | None
    plan: Plan
    points: list[Wanted]
    tasks: list[Task]
    folder: Path
    options: SweepOptions


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
    from amatax.evaluation.sweeping import sweep_job

    watcher = watcher or Watcher()
    job = _job(recipe, output, watcher, **options)
    swept = sweep_job(job.recipe, job.source, job.plan, job.points, job.tasks, job.folder, job.options, watcher)
    _write(swept, job.folder)
    return swept


def preview_sweep(
    recipe: RecipeSource, output: str | PathLike[str], *, watcher: Watcher | None = None, **options: Any
) -> Preview:
    """What a sweep will do: its points, its fits, how many samples, and what memory.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder of the results.
        options: `alpha` and `fit_alpha` ("0:1:0.1"), `ways` (of evaluation.points.WAYS), `blocks`, `grid` ("0,0.5,1"); `data`, `keep`
            and `keep_weight` of the fits; `device`, `batch_size`, `threads`, `trust_remote_code`, `overwrite`; `reward`;
            `open_tasks`, what makes tasks of the recipe's measures, for measures of one's own.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.evaluation.sweeping import preview

    job = _job(recipe, output, watcher or Watcher(), **options)
    return preview(job.recipe, job.source, job.plan, job.points, job.tasks, job.folder, job.options)


def _job(
    recipe: RecipeSource,
    output: str | PathLike[str],
    watcher: Watcher,
    *,
    alpha: str = "0:1:0.1",
    ways: Sequence[str] = ("uniform",),
    blocks: Sequence[int] = (),
    grid: str = "",
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
    open_tasks: OpenTasks | None = None,
) -> _Job:
    """Everything that a sweep is, made ready; faults that the recipe and the headers show come first."""
    from amatax.evaluation.points import numbers, wanted_points
    from amatax.evaluation.sweeping import SweepOptions, any_plan, check_points
    from amatax.fitting.libraries import import_libraries
    from amatax.fitting.options import FitOptions

    source = Path(recipe) if isinstance(recipe, str | PathLike) else None
    loaded = as_recipe(recipe)
    points = wanted_points(
        loaded,
        numbers(alpha, "--alpha"),
        ways,
        blocks=blocks,
        grid=numbers(grid, "--grid") if grid else (),
        fit_alphas=numbers(fit_alpha, "--fit-alpha") if fit_alpha else (),
    )
    plan = make_plan(any_plan(loaded), remote=True)
    check_points(points, plan)
    plan = downloaded(plan, watcher)
    import_libraries()
    from amatax.fitting.tokens import open_tokenizer
    from amatax.streaming.stream import pick_device

    checkpoint = plan.checkpoints[loaded.output.tokenizer]
    tasks = (open_tasks or _open_tasks())(
        getattr(loaded, "measures", None),
        tokenizer=open_tokenizer(checkpoint, trust_remote_code=trust_remote_code),
        sft=plan.checkpoints["sft"],
        device=pick_device(device),
        batch_size=batch_size,
        reward=reward,
    )
    fit = FitOptions(
        data=data,
        keep=keep,
        keep_weight=keep_weight,
        seed=seed,
        device=device,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    options = SweepOptions(fit, device, threads, trust_remote_code, overwrite)
    return _Job(loaded, source, plan, points, list(tasks), Path(output), options)


def _open_tasks() -> OpenTasks:
    """What makes tasks of measures."""
    return _part("amatax.evaluation.tasks", "open_tasks")


def _write(swept: Swept, folder: Path) -> None:
    """The files of a finished sweep: results, pictures, the report."""
    try:
        write_results = _part("amatax.evaluation.files", "write_results")
    except AmataxError:  # the journal has it all
        return
    write_results(swept.results, folder)


def _part(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AmataxError(f"this version of amatax has no {module}", "pass `open_tasks` to amatax.api.sweep") from None
    return found
