"""evaluate: measures of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from amatax.api.common import Watcher
from amatax.api.planning import downloaded
from amatax.checkpoints.checkpoint import TEXT_CONFIGS, Checkpoint
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import AmataxError, OutputError
from amatax.planning.plan import make_plan
from amatax.recipes.gallery import find_recipe, gallery
from amatax.recipes.loading import load_recipe
from amatax.recipes.measures import Wishes, load_measures, wishes_of
from amatax.recipes.schema import Adapted, Recipe, expand_home, is_folder

if TYPE_CHECKING:
    import torch

    from amatax.evaluation.declared import Declared
    from amatax.evaluation.likelihoods import Sft
    from amatax.evaluation.results import Point, Results
    from amatax.evaluation.tasks import Task

ROOM = ("max_position_embeddings", "n_positions")


class _Target(NamedTuple):
    """Something to evaluate: what its tokenizer and config are read from, and the live model, on the device, when its turn comes."""

    name: str
    kind: str  # of its point
    described: Checkpoint
    load: Callable[[], Any]
    alpha: float | None = None
    ratios: Mapping[str, float] = MappingProxyType({})


def evaluate(
    models: Sequence[str | PathLike[str]],
    *,
    measures: str | PathLike[str] | None = None,
    sft: str | None = None,
    reward: str | None = None,
    output: str | PathLike[str] | None = None,
    batch_size: int = 16,
    device: str = "auto",
    trust_remote_code: bool = False,
    lm_eval_tasks: str | PathLike[str] | None = None,
    watcher: Watcher | None = None,
) -> Results:
    """Measure models: a row for each, a column for each measure.

    Weights are read as they are stored and computed with in float32 on the CPU, in their own dtype on a GPU.

    Args:
        models: folders and Hub ids; a recipe among them says what is measured.
        measures: a file of measures (see amatax.recipes.measures), instead of the recipe's.
        sft: the model that `kl` is measured against; the recipe's by default.
        reward: FILE.py:function for `reward` measures without a model; it is run.
        output: a JSONL file to write: what each sample adds, and what was answered.
        batch_size: answers that are generated at a time.
        device: cpu, cuda, cuda:N, or auto.
        trust_remote_code: let transformers run the checkpoints' own code.
        lm_eval_tasks: a folder of tasks of one's own for `lm_eval` measures; the code that those name is run.

    Raises:
        AmataxError: see amatax.errors; everything that is wrong with measures and data before a model is loaded.
    """
    from amatax.evaluation.declared import declared_measures

    watcher = watcher or Watcher()
    if output is not None:
        _check_output(Path(output))
    if batch_size < 1:
        raise AmataxError(f"--batch-size {batch_size}: at least 1", "leave it out for the default")
    names = list(dict.fromkeys(map(str, models)))
    if not names:
        raise AmataxError("no model is named", "name recipes, model folders or Hub ids")
    recipes = {name: load_recipe(find_recipe(name)) for name in names if _is_recipe(name)}
    wanted = wishes(recipes, measures)
    declared = declared_measures(wanted)

    from amatax.evaluation.results import Point, Results
    from amatax.fitting.libraries import import_libraries

    import_libraries()
    targets = [
        _recipe_target(name, recipes[name], device, trust_remote_code, watcher)
        if name in recipes
        else _model_target(name, device, trust_remote_code)
        for name in names
    ]
    own = [recipe.models.sft for recipe in recipes.values()]
    if sft is None and any(model != own[0] for model in own) and any("divergence" in d.needs for d in declared):
        raise AmataxError("these recipes have different SFT models, and kl needs one", "say which: --sft MODEL")
    against = sft if sft is not None else own[0] if own else wanted.sft
    described = [target.described for target in targets]
    sft_model = sft_loader(against, declared, described, device, trust_remote_code)
    options = {"device": device, "batch_size": batch_size, "reward": reward, "trust_remote_code": trust_remote_code}
    options["lm_eval_tasks"] = lm_eval_tasks
    tasks = list(_tasks(targets, declared, sft_model, options))
    watcher.start(sum(task.samples for mine in tasks for task in mine))

    def tick(samples: int) -> None:
        watcher.advance(samples)
        watcher.wait()

    points: list[Point] = []
    for target, mine in zip(targets, tasks, strict=True):
        model = target.load()
        measured = {t.measure.name: t.run(model, tick) for t in mine}
        points.append(Point(target.name, target.kind, target.alpha, target.ratios, measured))
        del model
    found = Results({task.measure.name: task.measure for task in tasks[0]}, tuple(points))
    if output is not None:
        _write(found, Path(output))
    return found


def _is_recipe(name: str) -> bool:
    path = Path(name)
    with suppress(OSError):
        if path.is_dir():
            return False
        return path.is_file() or path.suffix in (".yaml", ".yml") or name in gallery()
    return False


def wishes(recipes: Mapping[str, Recipe], measures: str | PathLike[str] | None) -> Wishes:
    """What is to be measured: the file's measures, or those that the recipes agree on."""
    if measures is not None:
        path = Path(measures)
        return load_measures(find_recipe(str(path)) if str(path) in gallery() and not path.exists() else path)
    declaring = {name: recipe for name, recipe in recipes.items() if recipe.measures}
    if not declaring:
        hint = "write `measures:` into the recipe, or pass --measures FILE.yaml; docs/measures.md lists the kinds"
        raise AmataxError("nothing is to be measured", hint)
    first = next(iter(declaring))
    for name, recipe in declaring.items():
        if (
            recipe.measures != declaring[first].measures
            or wishes_of(recipe).folder != wishes_of(declaring[first]).folder
        ):
            raise AmataxError(f"{first} and {name} declare different measures", "say which: --measures FILE.yaml")
    return wishes_of(declaring[first])


def _recipe_target(name: str, recipe: Recipe, device: str, trust_remote_code: bool, watcher: Watcher) -> _Target:
    """A recipe, merged in memory."""
    from amatax.evaluation.live import LiveModel
    from amatax.evaluation.points import by_group
    from amatax.planning.ratios import mean_ratio

    plan = downloaded(make_plan(without_path(recipe), remote=True), watcher)
    load = partial(LiveModel.open, plan, device, dtype=computed_in(device), trust_remote_code=trust_remote_code)
    described = plan.checkpoints[recipe.output.tokenizer]
    return _Target(name, "recipe", described, lambda: load().model, mean_ratio(plan.ratios), by_group(plan.ratios))


def without_path(recipe: Recipe) -> Recipe:
    """The recipe of a merge that is written nowhere: what stands in its output folder is nothing to it."""
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"path": None})})


def _model_target(name: str, device: str, trust_remote_code: bool) -> _Target:
    """A folder, or a Hub id; all of it is fetched now."""
    folder = Path(expand_home(name)).is_dir()
    if not folder and not is_folder(name) and name.partition("@")[0].count("/") != 1:
        hint = f"a recipe's file or name ({', '.join(gallery())}), a model folder, or a Hub id, owner/name"
        raise AmataxError(f"{name}: no such recipe, folder or Hub id", hint)
    checkpoint = open_checkpoint(f"./{name}" if folder and not is_folder(name) else name)
    return _Target(name, "model", checkpoint, lambda: _load(checkpoint, device, trust_remote_code))


def _load(checkpoint: Checkpoint, device: str, trust_remote_code: bool) -> Any:
    """The live model, on the device."""
    from amatax.fitting.loading import load_model
    from amatax.fitting.memory import memory_hint
    from amatax.streaming.stream import pick_device

    where, dtype = pick_device(device), computed_in(device) or "auto"
    with memory_hint(f"on {where} with {checkpoint.ref}", "use another --device"):
        return load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code).to(where)


def computed_in(device: str) -> torch.dtype | None:
    """float32 on the CPU, whose half precision depends on the processor; None, the weights' own dtype, on a GPU."""
    import torch

    from amatax.streaming.stream import pick_device

    return torch.float32 if pick_device(device).type == "cpu" else None


def sft_loader(
    named: str | Adapted | None,
    declared: Sequence[Declared],
    others: Sequence[Checkpoint],
    device: str,
    trust_remote_code: bool,
) -> Sft | None:
    """What gives the SFT model, once for all tasks; None if nothing is measured against it, or nobody has named one."""
    if named is None or not any("divergence" in one.needs for one in declared):
        return None
    from amatax.fitting.tokens import open_tokenizer, same_vocabulary

    local = isinstance(named, str) and Path(named).is_dir() and not is_folder(named)
    checkpoint = open_checkpoint(f"./{named}" if local else named)
    own = open_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    for other in others:
        theirs = open_tokenizer(other, trust_remote_code=trust_remote_code)
        same_vocabulary(own, theirs, (checkpoint.ref, other.ref))
    loaded: list[Any] = []

    def get() -> AbstractContextManager[Any]:
        if not loaded:
            loaded.append(_load(checkpoint, device, trust_remote_code))
        return nullcontext(loaded[0])

    return get


def _tasks(
    targets: list[_Target], declared: list[Declared], sft: Sft | None, options: dict[str, Any]
) -> Iterator[list[Task]]:
    """Of every model; models with the same tokenizer share them."""
    from amatax.evaluation.tasks import open_tasks
    from amatax.fitting.tokens import open_tokenizer
    from amatax.planning.siblings import tokenizer_differences

    opened: list[tuple[_Target, int | None, list[Task]]] = []
    for target in targets:
        room = room_of(target.described)
        for other, their_room, known in opened:
            if room == their_room and not tokenizer_differences(other.described, target.described):
                tasks = known
                break
        else:
            tokenizer = open_tokenizer(target.described, trust_remote_code=options["trust_remote_code"])
            tasks = open_tasks(declared, tokenizer=tokenizer, sft=sft, room=room, **options)
            opened.append((target, room, tasks))
        yield tasks


def room_of(checkpoint: Checkpoint) -> int | None:
    """How many tokens the model takes, if its config says."""
    parts = [checkpoint.config, *(checkpoint.config.get(key) for key in TEXT_CONFIGS)]
    found = [part.get(key) for part in parts if isinstance(part, dict) for key in ROOM]
    return next((room for room in found if isinstance(room, int) and room > 0), None)


def _check_output(path: Path) -> None:
    """Before anything is measured, which may take hours."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name the file to write: -o results.jsonl")
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path.resolve().parent}: no such folder", "make it first, or name another place with -o")
    try:
        there = _unfinished(path).exists()  # of another run, which is writing now
        _unfinished(path).touch()
        if not there:
            _unfinished(path).unlink()
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}", "choose another place with -o") from error


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished.tmp")


def _write(results: Results, path: Path) -> None:
    """A line for every sample of every measure at every point, all or none."""
    partial = _unfinished(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            for point in results.points:
                for name, measured in point.measured.items():
                    responses = measured.responses or [None] * len(measured.samples)
                    for sample, sums, response in zip(measured.samples, measured.sums, responses, strict=True):
                        line = {"point": point.name, "measure": name, "sample": sample, "sums": sums.tolist()}
                        line |= {} if response is None else {"response": response}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}", "choose another place with -o") from error
    finally:
        partial.unlink(missing_ok=True)
