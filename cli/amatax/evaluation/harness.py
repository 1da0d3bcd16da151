"""Measures by lm-evaluation-harness: its tasks, found, loaded and checked before a model is.

A task's data, prompts, metrics and code are the harness's own. A recipe names tasks that are installed with it; those in a folder of
one's own, whose YAML can name code to run, come from the command line only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amatax.errors import AmataxError, DataError, MissingExtraError
from amatax.evaluation.asking import Asking, Tick, quiet
from amatax.evaluation.declared import Declared
from amatax.evaluation.measures import bind
from amatax.evaluation.measures._aggregations import AGGREGATIONS, aggregation_of
from amatax.evaluation.measures.lm_eval import Scored
from amatax.evaluation.results import Measure, Measured

OLDEST = (0, 4, 12)  # the first whose TaskManager loads tasks as objects
GENERATED = 256  # tokens, unless the task says otherwise: the harness's
LIST = "`lm-eval ls subtasks` lists them"


class Question(NamedTuple):
    """What makes two measures the same run of the harness."""

    task: str
    limit: int | None
    num_fewshot: int | None
    chat_template: bool
    max_new_tokens: int | None
    seed: int


class Harness:
    """The harness's tasks of one run of amatax; measures of the same question share its answers.

    Args:
        wanted: the tasks that are asked for.
        tokenizer: the models' own.
        folder: of tasks of one's own; they come before the harness's of the same name.
        batch_size: requests that a model sees at a time.
        room: tokens that the models take; None: not known.
    """

    def __init__(
        self, wanted: Sequence[str], tokenizer: Any, *, folder: Path | None, batch_size: int, room: int | None
    ) -> None:
        self._wanted, self._tokenizer, self._folder = wanted, tokenizer, folder
        self._batch_size, self._room = batch_size, room
        self._manager: Any = None
        self._asking: dict[Question, Asking] = {}

    def open(self, declared: Declared) -> tuple[Measure, int, Callable[[Any, Tick], Measured], tuple[str, ...]]:
        """A measure that is ready to be taken: what it is, its samples, what takes it of a live model, and the samples' names.

        Raises:
            DataError: for a task, metric or filter that there is not, or that no sums over documents can be made of; for data that
                cannot be loaded.
            MissingExtraError: for another version of the harness, or a library that the task needs.
        """
        options = declared.options
        question = Question(**{key: options[key] for key in Question._fields})
        if question not in self._asking:
            self._asking[question] = self._open(question)
        asking = self._asking[question]
        metric, aggregation = _metric(asking.task, question.task, options["metric"])
        chosen = _filter(asking.task, question.task, options["filter"])
        higher = _direction(asking.task.higher_is_better().get(metric), declared, metric)
        score, _ = bind(declared.kind, options)
        value = AGGREGATIONS[aggregation].value
        settings = {key: wish for key, wish in options.items() if wish is not None}
        settings |= {"metric": metric, "filter": chosen, "data": asking.sha256, "task version": asking.task.VERSION}
        settings["lm_eval"] = version("lm_eval")

        def run(model: Any, tick: Tick) -> Measured:
            documents, results = asking.answers(model, tick)
            mine = [document for document in documents if document["filter"] == chosen]
            try:
                sums = np.array([score(Scored(one.get(metric), aggregation)) for one in mine], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"{question.task}: {metric} is no number of a document: {error}", LIST) from error
            theirs = results[f"{metric},{chosen}"]
            ours = float(value(sums.sum(axis=0)))
            if not np.isclose(ours, float(theirs), rtol=1e-9, atol=1e-12, equal_nan=True):
                raise AmataxError(
                    f"{question.task}: {metric} is {ours!r} as a function of sums, and {theirs!r} by the harness",
                    "please report this, with the task",
                )
            return Measured(sums, named([document["doc_id"] for document in mine]), _generated(mine))

        def named(places: Iterable[int]) -> tuple[str, ...]:
            return tuple(f"{question.task} {place}" for place in places)

        names = named(dict.fromkeys(instance.doc_id for instance in asking.task.instances))
        return Measure(declared.name, declared.kind, higher, value, settings), asking.samples, run, names

    def _open(self, question: Question) -> Asking:
        task = self._load(question.task)
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(f"{question.task} runs code that the model writes", "amatax does not: take another task")
        if getattr(task, "MULTIMODAL", False):
            raise DataError(f"{question.task} asks about pictures or sounds", "amatax measures text: take another task")
        if question.chat_template and not getattr(self._tokenizer, "chat_template", None):
            raise DataError("chat_template: the model's tokenizer has none", "leave `chat_template` out")
        _set_options(task, question)
        with quiet():
            task.set_fewshot_seed(seed=question.seed)
            try:
                task.build_all_requests(limit=question.limit, fewshot_as_multiturn=True)
            except (LookupError, TypeError, ValueError) as error:
                raise DataError(f"{question.task}: its prompts cannot be made: {error}", "mend the task") from error
        self._check_room(task, question)
        return Asking(task, question, self._tokenizer, self._batch_size, _checksum(task.instances))

    def _load(self, name: str) -> Any:
        """The task, with its data."""
        manager = self._tasks()
        if name not in manager.all_subtasks:
            raise DataError(f"there is no task {name!r} in lm_eval", self._meant(name))
        with quiet():
            try:
                (task,) = manager.load([name])["tasks"].values()
            except ImportError as error:
                raise MissingExtraError(f"{name} needs a library: {_line(error)}", "install it") from error
            except Exception as error:  # whatever the task's code, the Hub and the readers of files raise
                dataset = _dataset(error)
                if dataset is None:
                    raise DataError(f"{name} cannot be loaded: {_line(error)}", "mend the task") from error
                path, config = dataset
                arguments = ", ".join(repr(part) for part in (path, config) if part)
                raise DataError(
                    f"{name}: the dataset {path}{f' ({config})' if config else ''} cannot be loaded: {_line(error)}",
                    "fetch it once where there is a network, and it is found without one: "
                    f'python -c "import datasets; datasets.load_dataset({arguments})"',
                ) from error
        return task

    def _tasks(self) -> Any:
        """The index: of the folder, and of the harness's own thousands if one of those is asked for."""
        if self._manager is None:
            found = version("lm_eval")
            numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
            if not OLDEST <= numbers < (0, 5):
                oldest = ".".join(map(str, OLDEST))
                raise MissingExtraError(
                    f"lm_eval {found} is installed, and amatax knows {oldest} to 0.4.x", 'pip install "amatax[lm-eval]"'
                )
            with quiet():
                if self._folder is not None:
                    self._manager = _index(str(self._folder), builtin=False)
                if self._manager is None or not set(self._wanted) <= set(self._manager.all_subtasks):
                    self._manager = _index(str(self._folder), builtin=True) if self._folder else _builtin()
        return self._manager

    def _meant(self, name: str) -> str:
        """A hint for a name that is no task's."""
        manager = self._manager
        entry = manager.task_index.get(name)
        if entry is not None:
            named = sorted(entry.tags) if entry.cfg is None else entry.cfg.get("task", ())  # a tag, or a group
            inside = [one for one in named if isinstance(one, str)]
            shown = f": {', '.join(inside[:6])}{', ...' if len(inside) > 6 else ''}" if inside else ""
            return f"it is a group of tasks; name each that you want{shown}"
        close = difflib.get_close_matches(name, manager.all_subtasks, n=1, cutoff=0.5)
        own = "" if self._folder else " Tasks of your own: --lm-eval-tasks FOLDER"
        return (f"did you mean `{close[0]}`?" if close else f"{LIST}.") + own

    def _check_room(self, task: Any, question: Question) -> None:
        """The harness takes that much away from the prompt, and stops if nothing is left."""
        for instance in task.instances if self._room else ():
            if instance.request_type != "generate_until":
                continue
            wishes = instance.args[1]
            tokens = next((wishes[k] for k in ("max_gen_toks", "max_new_tokens", "max_tokens") if k in wishes), None)
            if (tokens or GENERATED) >= (self._room or 0):
                raise DataError(
                    f"{question.task} generates {tokens or GENERATED} tokens, and the model takes {self._room}, prompt included",
                    "say how many: `max_new_tokens`",
                )


def _set_options(task: Any, question: Question) -> None:
    """As the harness's own command line does."""
    fixed = task.get_config("num_fewshot")
    if question.num_fewshot is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
    elif fixed == 0 and question.num_fewshot:
        raise DataError(f"{question.task} is asked without examples, always", "leave `num_fewshot` out")
    else:
        task.set_config(key="num_fewshot", value=question.num_fewshot)
    if question.max_new_tokens is not None:
        if task.OUTPUT_TYPE not in (None, "generate_until"):
            raise DataError(
                f"{question.task} generates nothing: it is {task.OUTPUT_TYPE}", "leave `max_new_tokens` out"
            )
        task.set_config(key="generation_kwargs", value={"max_gen_toks": question.max_new_tokens}, update=True)


def _metric(task: Any, name: str, wanted: str | None) -> tuple[str, str]:
    """(metric, its aggregation)."""
    known: Mapping[str, Callable[..., Any]] = task.aggregation()
    usable = [metric for metric, function in known.items() if aggregation_of(function)]
    metric = wanted if wanted is not None else next(iter(known)) if len(known) == 1 else None
    hint = f"`metric:` one of {', '.join(usable)}" if usable else "none of its metrics can be had: take another task"
    if metric is None:
        raise DataError(f"{name} has several metrics ({', '.join(known)})", hint)
    if metric not in known:
        raise DataError(f"{name} has no metric {metric!r}", hint)
    aggregation = aggregation_of(known[metric])
    if not aggregation:
        how = getattr(known[metric], "__name__", "its own")
        raise DataError(
            f"{metric} of {name} is made of all documents at once (aggregation: {how}): it has no standard error by documents",
            hint,
        )
    return metric, aggregation


def _filter(task: Any, name: str, wanted: str | None) -> str:
    """Which reading of the answers is scored."""
    known = [one.name for one in getattr(task, "_filters", ())] or ["none"]
    if wanted is None and len(known) > 1:
        raise DataError(f"{name} reads its answers in several ways ({', '.join(known)})", "say which: `filter:`")
    if wanted is not None and wanted not in known:
        raise DataError(f"{name} has no filter {wanted!r}", f"`filter:` one of {', '.join(known)}")
    return wanted or known[0]


def _direction(theirs: bool | None, declared: Declared, metric: str) -> bool | None:
    if theirs is not None and declared.higher is not None and theirs != declared.higher:
        message = f"of {metric} {'more' if theirs else 'less'} is better, says the task"
        raise DataError(message, "leave `higher` out")
    return declared.higher if theirs is None else bool(theirs)


def _generated(documents: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """What the model wrote for each, if it wrote for all."""
    found = [next((answers[0] for answers in one["resps"] if isinstance(answers[0], str)), None) for one in documents]
    texts = tuple(text for text in found if text is not None)
    return texts if texts and len(texts) == len(found) else None


def _checksum(instances: Sequence[Any]) -> str:
    """Of every document and everything that is asked about it."""
    total = hashlib.sha256()
    for one in instances:
        said = [one.doc_id, one.request_type, one.repeats, one.args, one.doc]
        total.update(json.dumps(said, sort_keys=True, default=_plain).encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else str(value)


def _dataset(error: BaseException) -> tuple[str, str | None] | None:
    """Which dataset an error was raised over: of the task whose code was running."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and getattr(owner, "DATASET_PATH", None):
            return str(owner.DATASET_PATH), getattr(owner, "DATASET_NAME", None)
    return None


def _line(error: BaseException) -> str:
    """Its first line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _index(folder: str | None, *, builtin: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=builtin)


@cache
def _builtin() -> Any:
    return _index(None, builtin=True)
