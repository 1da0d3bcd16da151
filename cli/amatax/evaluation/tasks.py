"""Declared measures -> tasks that measure a live model; everything that can be wrong with their data is found here, at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import AmataxError, DataError, Fault, MeasureError
from amatax.evaluation.data import Data, as_choice, read_data, references, right_choice
from amatax.evaluation.declared import Declared
from amatax.evaluation.harness import Harness
from amatax.evaluation.measures import Answer, Choices, bind
from amatax.evaluation.results import Measure, Measured
from amatax.fitting.libraries import import_libraries
from amatax.fitting.records import Record, prompt_ids
from amatax.fitting.rewards import Scorer, function_scorer, model_scorer
from amatax.fitting.samples import Sample, tokenize
from amatax.fitting.sampling import Sampling
from amatax.recipes.schema import expand_home, is_folder

Tick = Callable[[int], None]  # told now and then how many samples have been done since
Sft = Callable[[], AbstractContextManager[Any]]  # as amatax.evaluation.likelihoods.Sft
Score = Callable[[Any], tuple[float, ...]]


class Task(NamedTuple):
    """A measure that is ready to be taken.

    Attributes:
        measure: what it is.
        samples: how many it has.
        run: measure a live transformers model, in evaluation mode on its device; one whose weights have changed is measured anew.
        names: of the samples, where they are known beforehand.
    """

    measure: Measure
    samples: int
    run: Callable[[Any, Tick], Measured]
    names: tuple[str, ...] = ()


class _Setting(NamedTuple):
    """What every task of a run shares."""

    tokenizer: Any
    sft: Sft | None
    device: str
    batch_size: int
    reward: Scorer | None
    room: int | None
    trust_remote_code: bool
    harness: Harness
    answering: dict[Any, Any]  # by file and sampling
    scorers: dict[str, Scorer]  # by reward model


def open_tasks(
    declared: Sequence[Declared],
    *,
    tokenizer: Any,
    sft: Sft | None = None,
    device: str = "auto",
    batch_size: int = 16,
    reward: str | None = None,
    room: int | None = None,
    trust_remote_code: bool = False,
    lm_eval_tasks: str | PathLike[str] | None = None,
) -> list[Task]:
    """Read, check and tokenize all data. No model is loaded: SFT and reward models are when a task first needs them.

    Args:
        declared: what is measured.
        tokenizer: the models' own, of transformers.
        sft: gives the SFT model, live on the device until the block ends, for `kl`; it may be the measured model itself, moved.
        device: of reward models.
        batch_size: answers that are generated at a time; no more than rounding hangs on it.
        reward: FILE.py:function for reward measures that name no model; it is run.
        room: tokens that the models take, prompt and response together; None: not known.
        trust_remote_code: let transformers run a reward model's own code.
        lm_eval_tasks: a folder of tasks of one's own for `lm_eval` measures; the code that those name is run.

    Raises:
        MeasureError: with everything that is wrong.
        DataError: if the function or the folder is not there, or no measure takes it.
    """
    import_libraries()
    takers = [d.name for d in declared if "reward" in d.needs and d.options["model"] is None]
    if reward and not takers:
        raise DataError(
            f"--reward {reward}: no measure takes it", "declare one: {measure: reward, data: PROMPTS.jsonl}"
        )
    asking = [d.options["task"] for d in declared if "task" in d.needs]
    folder = Path(lm_eval_tasks) if lm_eval_tasks is not None else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"--lm-eval-tasks {folder}: no such folder", "name the folder that has the tasks' YAML files")
    if folder is not None and not asking:
        raise DataError(f"--lm-eval-tasks {folder}: no measure takes it", "declare one: {measure: lm_eval, task: NAME}")
    harness = Harness(asking, tokenizer, folder=folder, batch_size=batch_size, room=room)
    again = "mend it and run the same command again"
    scorer = function_scorer(reward, again=again) if reward else None
    setting = _Setting(tokenizer, sft, device, batch_size, scorer, room, trust_remote_code, harness, {}, {})
    tasks: list[Task] = []
    faults: list[Fault] = []
    for one in declared:
        try:
            tasks.append(_open_task(one, setting))
        except AmataxError as error:
            file = "" if one.data is None or str(one.data) in error.message else f"{one.data}, "
            faults.append(Fault(f"{file}{error.message}", one.where, error.hint))
    if faults:
        raise MeasureError(faults)
    return tasks


def _open_task(declared: Declared, setting: _Setting) -> Task:
    if "task" in declared.needs:
        return Task(*setting.harness.open(declared))
    data = read_data(declared)
    score, value = bind(declared.kind, declared.options)
    settings: dict[str, Any] = {**declared.options, "data": data.sha256}
    settings = {key: wish for key, wish in settings.items() if wish is not None}
    run: Callable[[Any, Tick], Measured]
    if "answer" in declared.needs:
        run = _of_answers(declared, data, setting, score, settings)
    elif "choices" in declared.needs:
        run = _of_choices(declared, data, setting, score)
    elif "divergence" in declared.needs:
        run = _of_divergence(declared, data, setting, score)
    else:
        samples = _tokenized(data.picked, declared, setting)
        run = partial(_measure_likelihood, samples, _lines(data.picked), score, None)
    names = tuple(map(str, _lines(data.picked)))
    return Task(Measure(declared.name, declared.kind, declared.higher, value, settings), len(names), run, names)


def _of_answers(
    declared: Declared, data: Data, setting: _Setting, score: Score, settings: dict[str, Any]
) -> Callable[[Any, Tick], Measured]:
    from amatax.evaluation.answering import Answering

    sampling = _sampling(declared)
    key = (data.sha256, sampling)
    if key not in setting.answering:
        prompts = [prompt_ids(record, setting.tokenizer, raw=sampling.raw) for record in data.records]
        for record, ids in zip(data.records, prompts, strict=True):
            _check_room(len(ids) + 1, record.line, setting)
        setting.answering[key] = Answering(data.records, prompts, sampling, setting.tokenizer, setting.batch_size)
    answering: Answering = setting.answering[key]
    answering.want(data.wanted)
    scorer = _scorer(declared, setting) if "reward" in declared.needs else None
    if scorer:
        settings["reward"] = scorer.identity

    def run(model: Any, tick: Tick) -> Measured:
        answers = answering.answers(model, len(data.wanted), tick)
        mine = [answers[place] for place in data.wanted]
        rewards: dict[int, float] = {}
        if scorer:
            for found in scorer.score(
                [(i, record, sample.response) for i, (record, sample) in enumerate(zip(data.picked, mine, strict=True))]
            ):
                rewards |= found
        rights = [references(r) if "references" in declared.needs else () for r in data.picked]
        seen = [
            Answer(sample.response, sample.tokens or 0, right, rewards.get(i, 0.0))
            for i, (sample, right) in enumerate(zip(mine, rights, strict=True))
        ]
        return _measured(map(score, seen), data.picked, tuple(sample.response for sample in mine))

    return run


def _of_choices(declared: Declared, data: Data, setting: _Setting, score: Score) -> Callable[[Any, Tick], Measured]:
    from amatax.evaluation.likelihoods import likelihoods

    raw = bool(declared.options["raw"])
    if raw:
        for record in data.picked:
            prompt_ids(record, setting.tokenizer, raw=True)  # says which line has no `prompt`
    counts = [len(record.data["choices"]) for record in data.picked]
    asked = [as_choice(record, choice, raw=raw) for record in data.picked for choice in record.data["choices"]]
    samples = _tokenized(asked, declared, setting)

    def run(model: Any, tick: Tick) -> Measured:
        done = told = 0

        def tell(more: int) -> None:
            nonlocal done, told
            done += more
            now = done * len(counts) // len(samples)
            tick(now - told)
            told = now

        found = iter(likelihoods(model, samples, _lines(asked), tell))
        seen = [
            Choices(tuple(next(found) for _ in range(count)), tuple(record.data["choices"]), right_choice(record))
            for count, record in zip(counts, data.picked, strict=True)
        ]
        return _measured(map(score, seen), data.picked)

    return run


def _of_divergence(declared: Declared, data: Data, setting: _Setting, score: Score) -> Callable[[Any, Tick], Measured]:
    """Along the responses in the data; those that are not there SFT gives, once."""
    from amatax.evaluation.answering import Answering

    if setting.sft is None:
        raise DataError("kl needs the SFT model", "evaluate a recipe, or name it with --sft")
    sft = setting.sft
    answered = [record for record in data.picked if record.response is not None]
    asked = [place for place in data.wanted if data.records[place].response is None]
    if answered:
        _tokenized(answered, declared, setting)
    sampling = _sampling(declared)
    prompts = [prompt_ids(record, setting.tokenizer, raw=sampling.raw) for record in data.records]
    for place in asked:
        _check_room(len(prompts[place]) + 1, data.records[place].line, setting)
    answering = Answering(data.records, prompts, sampling, setting.tokenizer, setting.batch_size)
    answering.want(asked)

    def complete() -> tuple[list[Record], list[Sample]]:
        """Every record with a response: prompts to which SFT says nothing have none to diverge along."""
        answers: Mapping[int, Any] = {}
        if asked:
            with sft() as model:
                answers = answering.answers(model, 0, lambda n: None)
        records = []
        for place in data.wanted:
            record = data.records[place]
            if place in answers:
                answer = answers[place]
                record = Record(record.line, {**record.data, "response": answer.response, "finish": answer.finish})
                if not answer.response.strip():
                    raise DataError(
                        f"{declared.data}, line {record.line}: SFT answers nothing", "leave this prompt out of the data"
                    )
            records.append(record)
        return records, _tokenized(records, declared, setting)

    completed = _once(complete)

    def run(model: Any, tick: Tick) -> Measured:
        records, samples = completed()
        return _measure_likelihood(samples, _lines(records), score, sft, model, tick)

    return run


def _measure_likelihood(
    samples: list[Sample], lines: list[int], score: Score, sft: Sft | None, model: Any, tick: Tick
) -> Measured:
    from amatax.evaluation.likelihoods import likelihoods

    found = likelihoods(model, samples, lines, tick, sft=sft)
    return Measured(np.array([score(seen) for seen in found], dtype=np.float64), tuple(map(str, lines)))


def _measured(scores: Any, records: list[Record], responses: tuple[str, ...] | None = None) -> Measured:
    return Measured(np.array(list(scores), dtype=np.float64), tuple(map(str, _lines(records))), responses)


def _tokenized(records: list[Record], declared: Declared, setting: _Setting) -> list[Sample]:
    samples, _ = tokenize(records, setting.tokenizer, raw=bool(declared.options["raw"]))
    for record, sample in zip(records, samples, strict=True):
        _check_room(len(sample.ids), record.line, setting)
    return samples


def _check_room(tokens: int, line: int, setting: _Setting) -> None:
    if setting.room and tokens > setting.room:
        raise DataError(
            f"line {line}: {tokens} tokens, and the model takes {setting.room}", "shorten this line or leave it out"
        )


def _sampling(declared: Declared) -> Sampling:
    options: Mapping[str, Any] = declared.options
    drawn = {key: options[key] for key in ("temperature", "top_p", "max_new_tokens", "seed", "raw")}
    if drawn["temperature"] == 0:  # nothing is drawn
        drawn |= {"seed": 0, "top_p": 1.0}
    return Sampling(n=1, **drawn)


def _scorer(declared: Declared, setting: _Setting) -> Scorer:
    name = declared.options["model"]
    if name is None:
        if setting.reward is None:
            hint = "pass --reward FILE.py:function, or write `model:`, a reward model's folder or Hub id"
            raise DataError("this reward needs a function or a model", hint)
        return setting.reward
    where = str(Path(declared.folder / expand_home(name)).resolve()) if is_folder(name) else name
    if where not in setting.scorers:
        setting.scorers[where] = model_scorer(
            open_checkpoint(where),
            batch_size=setting.batch_size,
            device=setting.device,
            trust_remote_code=setting.trust_remote_code,
        )
        setting.scorers[where].prepare()
    return setting.scorers[where]


def _lines(records: list[Record]) -> list[int]:
    return [record.line for record in records]


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same thing at every call, made at the first."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get
