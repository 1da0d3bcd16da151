"""Real measures for the sweep's tests: the NLL of responses, and greedy answers with their lengths.

As a script it is `amatax` with these as its measures: python -m tests.evaluation.nll DATA sweep RECIPE ...
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amatax.evaluation.results import Measure, Measured

COUNT = 12  # samples


class Task(NamedTuple):
    measure: Measure
    samples: int
    run: Callable[[Any, Callable[[int], None]], Measured]
    names: tuple[str, ...] = ()


def mean(sums: Any) -> Any:
    return sums[..., 0] / sums[..., 1]


def tasks_of(data: Path, count: int = COUNT) -> Callable[..., list[Task]]:
    """What makes both measures of a data file's first samples."""

    def open_tasks(declared: Any, *, tokenizer: Any, device: Any, **_: Any) -> list[Task]:
        import torch

        from amatax.fitting.likelihood import IGNORED, batches, pad, response_logs
        from amatax.fitting.records import read_records
        from amatax.fitting.samples import tokenize

        records, _ = read_records(data, responses=True)
        samples, _ = tokenize(records[:count], tokenizer, raw=False)
        names = tuple(str(i + 1) for i in range(len(samples)))
        settings = {"sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "count": len(samples)}

        def nll(model: Any, tick: Callable[[int], None]) -> Measured:
            sums = np.zeros((len(samples), 2))
            for batch in batches(samples, 256):
                ids, mask, targets = pad([samples[i] for i in batch], device)
                with torch.no_grad():
                    logs = response_logs(model, ids, mask, targets)
                wanted = targets != IGNORED
                losses = -logs.gather(1, targets[wanted][:, None])[:, 0]
                for loss, row in zip(losses.tolist(), wanted.nonzero()[:, 0].tolist(), strict=True):
                    sums[batch[row]] += loss, 1
                tick(len(batch))
            return Measured(sums, names)

        def answers(model: Any, tick: Callable[[int], None]) -> Measured:
            texts = []
            for sample in samples:
                ids = torch.tensor([sample.ids[: sample.start]], device=device)
                with torch.no_grad():
                    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
                texts.append(tokenizer.decode(out[0, sample.start :], skip_special_tokens=True))
                tick(1)
            return Measured(np.array([[len(text), 1.0] for text in texts]), names, tuple(texts))

        return [
            Task(Measure("nll", "nll", False, mean, settings), len(samples), nll),
            Task(Measure("length", "length", None, mean, settings), len(samples), answers),
        ]

    return open_tasks


def as_amatax(arguments: Sequence[str]) -> None:
    """The command line with these measures in the place of those that recipes declare."""
    from functools import partial

    from amatax import api
    from amatax.commands import app

    tasks = tasks_of(Path(arguments[0]))
    api.sweep, api.preview_sweep = (partial(verb, open_tasks=tasks) for verb in (api.sweep, api.preview_sweep))
    app(arguments[1:], prog_name="amatax")


if __name__ == "__main__":
    as_amatax(sys.argv[1:])
