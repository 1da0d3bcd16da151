"""The proxy set D_theta (AMA, Eq. 7): prompts -> responses of the RLHF model -> the best of them -> one JSONL file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amatax.errors import AmataxError, DataError
from amatax.fitting.identity import check_output, finished_already, job_head, same_job
from amatax.fitting.journal import Journal, open_journal
from amatax.fitting.records import Record, read_records
from amatax.fitting.rewards import Scorer, open_scorer
from amatax.fitting.sampling import Sampling, Watching
from amatax.fitting.selection import Selection, Summary, output_record, select, summarise
from amatax.fitting.sources import LocalModel, ServedModel
from amatax.recipes.schema import Recipe

MANY = 0.2  # share of responses cut off from which it is worth a word


@dataclass(frozen=True)
class DistillOptions:
    """How a proxy set is distilled.

    Attributes:
        n, temperature, top_p, max_new_tokens, seed, raw: see amatax.fitting.sampling.Sampling.
        role: which model answers: rlhf, or sft for what `fit_ratios` is to keep.
        batch_size: samples at a time, for the model and for a reward model.
        device: cpu, cuda, cuda:N, or auto.
        server: the URL of an OpenAI-compatible server that answers instead.
        server_model: its name there; the only one by default.
        concurrency, retries, timeout: see amatax.fitting.client.Server.
        reward: FILE.py:function, a function (prompt, response) -> float.
        reward_model: a folder or Hub id of a sequence-classification model with one label.
        top: keep so many with the highest rewards.
        draw: of those, draw so many.
        most_bad: the share of bad lines in the prompts that are skipped.
        trust_remote_code: let transformers run the checkpoint's own code.
        overwrite: replace another file at the output, or other unfinished work.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    raw: bool = False
    role: str = "rlhf"
    batch_size: int = 16
    device: str = "auto"
    server: str | None = None
    server_model: str | None = None
    concurrency: int = 16
    retries: int = 5
    timeout: float = 600.0
    reward: str | None = None
    reward_model: str | None = None
    top: int | None = None
    draw: int | None = None
    most_bad: float = 0.0
    trust_remote_code: bool = False
    overwrite: bool = False

    @property
    def sampling(self) -> Sampling:
        """How responses are drawn."""
        return Sampling(self.n, self.temperature, self.top_p, self.max_new_tokens, self.seed, self.raw)

    @property
    def selection(self) -> Selection:
        """Which of them are kept."""
        return Selection(self.top, self.draw)


@dataclass
class DistillResult:
    """A finished proxy set.

    Attributes:
        output: the JSONL file.
        summary: of every response, and of the selection.
        already: it was finished before; nothing was written.
        kept: samples that an earlier run had finished.
        seconds: wall time, without what earlier runs took.
        notes: for the user.
    """

    output: Path
    summary: Summary
    already: bool = False
    kept: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def distil(recipe: Recipe, prompts: Path, output: Path, options: DistillOptions, watcher: Watching) -> DistillResult:
    """Sample, score, select, write; what an earlier run has done of the same job is kept.

    Raises:
        AmataxError: see amatax.errors. The journal keeps every finished sample.
    """
    began = time.perf_counter()
    sampling = options.sampling
    sampling.check()
    _check(options)
    if options.role not in recipe.models.by_role():
        named = ", ".join(recipe.models.by_role())
        raise AmataxError(f"--role {options.role}: the recipe names no such model", f"it names {named}")
    check_output(output, prompts)
    records, notes = read_records(prompts, responses=False, most_bad=options.most_bad)
    if answered := sum("messages" in record.data and record.response is not None for record in records):
        notes.append(f"{answered} of {len(records)} records end with an answer, which is left out and sampled anew")
    scorer = open_scorer(options)
    source = ServedModel(recipe, options, watcher) if options.server else LocalModel(recipe, options, watcher)
    with open_journal(output) as journal:
        head = job_head(prompts, len(records), sampling, source.head(journal.head), source.run())
        ending = {"reward": scorer.identity if scorer else None, **asdict(options.selection)}
        already = finished_already(output, journal, head, ending, overwrite=options.overwrite)
        kept = len(journal.samples)
        if not already:
            keep = same_job(journal.head, head)
            if scorer:
                scorer.prepare()
            source.prepare(records)
            journal.begin(head, keep=keep)
            kept = len(journal.samples)
            if kept:
                watcher.say(f"continuing: {kept} of {len(records) * sampling.n} responses are there")
            _fill(journal, records, sampling, source, scorer, watcher)
        rewards = journal.rewards.get(scorer.identity, {}) if scorer else {}
        selected, summary = _conclude(records, options, journal, rewards)
        notes += source.notes + (scorer.notes if scorer else []) + _notes(summary, options)
        if already:
            journal.close_finished()
        else:
            _write_output(output, journal, records, sampling, rewards, selected, ending)
    return DistillResult(output, summary, already, kept, time.perf_counter() - began, notes)


def _check(options: DistillOptions) -> None:
    """Raises AmataxError for options that do not go together."""
    if options.reward and options.reward_model:
        raise AmataxError("--reward and --reward-model are two rewards", "choose one")
    top, draw = options.selection.top, options.selection.draw
    if top is not None and not (options.reward or options.reward_model):
        raise AmataxError("--top keeps the highest rewards, and there is no reward", "add --reward or --reward-model")
    at_least_one = {"--top": top, "--draw": draw, "--batch-size": options.batch_size}
    at_least_one |= {"--concurrency": options.concurrency}
    for name, number in at_least_one.items():
        if number is not None and number < 1:
            raise AmataxError(f"{name} {number}: at least 1", "leave it out for the default")
    if options.server_model and not options.server:
        raise AmataxError("--server-model without --server", "add --server URL")


def _fill(
    journal: Journal,
    records: list[Record],
    sampling: Sampling,
    source: LocalModel | ServedModel,
    scorer: Scorer | None,
    watcher: Watching,
) -> None:
    """Sample what the journal misses, then score what it misses."""
    count = len(records) * sampling.n
    if wanted := [item for item in range(count) if item not in journal.samples]:
        watcher.start(len(wanted))
        for samples in source.samples(wanted):
            journal.add_samples(samples)
    if scorer is None:
        return
    done = journal.rewards.get(scorer.identity, {})
    unscored = [item for item in range(count) if item not in done and journal.samples[item].response.strip()]
    if unscored:
        watcher.say(f"scoring {len(unscored)} responses")
        watcher.start(len(unscored))
        for rewards in scorer.score([(i, records[i // sampling.n], journal.samples[i].response) for i in unscored]):
            journal.add_rewards(scorer.identity, rewards)
            watcher.advance(len(rewards))
            watcher.wait()


def _conclude(
    records: list[Record], options: DistillOptions, journal: Journal, rewards: Mapping[int, float]
) -> tuple[list[int], Summary]:
    """What is selected, and the summary.

    Raises:
        DataError: if every response is empty.
    """
    sampling = options.sampling
    selected = select(journal.samples, rewards, options.selection, sampling.seed)
    if not selected:
        raise DataError(
            f"all {len(journal.samples)} responses are empty",
            "does the model answer these prompts? `amatax verify FOLDER --load --prompt ...` shows one answer",
        )
    return selected, summarise(records, sampling.n, journal.samples, rewards, selected)


def _notes(summary: Summary, options: DistillOptions) -> list[str]:
    """What is worth saying of a result."""
    notes = []
    top, draw = options.selection.top, options.selection.draw
    good = summary.responses - summary.empty
    if top is not None and top > good:
        notes.append(f"--top {top} keeps all: {good} responses are not empty")
    if draw is not None and draw > min(good, top or good):
        notes.append(f"--draw {draw} takes all: there are {summary.selected} to draw from")
    if summary.truncated > MANY * summary.responses:
        share = summary.truncated / summary.responses
        notes.append(f"{share:.0%} of the responses were cut off: a larger --max-new-tokens lets them end")
    return notes


def _write_output(
    output: Path,
    journal: Journal,
    records: list[Record],
    sampling: Sampling,
    rewards: Mapping[int, float],
    selected: list[int],
    ending: dict[str, Any],
) -> None:
    """The selected records under a temporary name, the journal's last line, and then both get their names."""
    text = "".join(
        json.dumps(
            output_record(records[item // sampling.n], journal.samples[item], rewards.get(item)), ensure_ascii=False
        )
        + "\n"
        for item in selected
    )
    data = text.encode("utf-8")
    partial = output.with_name(output.name + ".unfinished.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        journal.end({**ending, "sha256": hashlib.sha256(data).hexdigest()})
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    journal.close_finished()
