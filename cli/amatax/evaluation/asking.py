"""A task of lm-evaluation-harness put to a live model: by the harness's own code, with no cache between two models."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from amatax.errors import DataError
from amatax.evaluation.answering import Tick, fingerprint

if TYPE_CHECKING:
    from amatax.evaluation.harness import Question

Documents = Sequence[Mapping[str, Any]]  # as the harness logs them: one for each document and filter


class Asking:
    """A task's questions, and what the last model made of them.

    Args:
        task: of the harness, its options set.
        question: what is asked.
        tokenizer: the models' own.
        batch_size: requests that a model sees at a time.
        sha256: of all that is asked.
    """

    def __init__(self, task: Any, question: Question, tokenizer: Any, batch_size: int, sha256: str) -> None:
        self.task, self.sha256 = task, sha256
        self.samples = len({instance.doc_id for instance in task.instances})
        self._question, self._tokenizer, self._batch_size = question, tokenizer, batch_size
        self._of = b""  # the model that the answers are of
        self._answers: tuple[Documents, Mapping[str, Any]] = (), {}

    def answers(self, model: Any, tick: Tick) -> tuple[Documents, Mapping[str, Any]]:
        """(documents, results by `metric,filter`), asked unless they are there of a model with these very weights.

        Raises:
            DataError: if the harness cannot ask or score it.
        """
        weights = fingerprint(model)
        progress = _Progress(self.samples, len(self.task.instances), tick)
        if weights != self._of:
            self._of, self._answers = b"", ((), {})
            try:
                self._answers = self._ask(model, progress)
            except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self._question.task}: the harness cannot ask or score it: {error}",
                    "mend the task, or take another",
                ) from error
            self._of = weights
        progress.end()
        return self._answers

    def _ask(self, model: Any, progress: _Progress) -> tuple[Documents, Mapping[str, Any]]:
        """All of it anew: neither its cache of requests nor that of responses is used, which do not know the weights."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        question = self._question
        with quiet(), seeded(question.seed, model.device):
            # a tokenizer of its own: the harness may give it a padding token
            lm = HFLM(pretrained=model, tokenizer=deepcopy(self._tokenizer), batch_size=self._batch_size)
            lm.set_cache_hook(progress)
            self.task.set_fewshot_seed(seed=question.seed)
            found = evaluate(
                lm,
                {"tasks": {question.task: self.task}, "groups": {}},
                limit=question.limit,
                cache_requests=False,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=question.chat_template,
                fewshot_as_multiturn=True,
            )
        return found["samples"][question.task], found["results"][question.task]


class _Progress:
    """Told of every request that is done, in the place of the harness's cache; tells of documents."""

    def __init__(self, samples: int, requests: int, tick: Tick) -> None:
        self._samples, self._requests, self._tick = samples, requests, tick
        self._done = self._told = 0

    def add_partial(self, *request: Any) -> None:
        """One more is done."""
        self._done += 1
        self._tell(min(self._samples, self._done * self._samples // self._requests))

    def end(self) -> None:
        """All are."""
        self._tell(self._samples)

    def _tell(self, now: int) -> None:
        self._tick(now - self._told)
        self._told = now


@contextmanager
def quiet() -> Iterator[None]:
    """The harness without its bars, its log and its warnings; what a task prints goes to stderr."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    from tqdm import tqdm

    datasets.disable_progress_bars()
    log = logging.getLogger("lm_eval")
    level = log.level
    bars: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
    before = [module.tqdm for module in bars]
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        for module in bars:
            module.tqdm = lambda *these, **options: tqdm(*these, **{**options, "disable": True})
        try:
            yield
        finally:
            for module, theirs in zip(bars, before, strict=True):
                module.tqdm = theirs
            log.setLevel(level)


@contextmanager
def seeded(seed: int, device: Any) -> Iterator[None]:
    """The global random numbers as the harness's command line has them, and afterwards as they were."""
    import torch

    before, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(arrays)
