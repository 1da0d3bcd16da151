"""Nats of responses under a live model, by teacher forcing: -log p, or KL(SFT || model), as a fit measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from amatax.errors import DataError, NonFiniteError
from amatax.evaluation.measures import Likelihood
from amatax.fitting.generation import Tick
from amatax.fitting.likelihood import BATCH_TOKENS, IGNORED, batches, most_tokens, pad, response_logs, token_losses
from amatax.fitting.memory import memory_hint
from amatax.fitting.samples import Sample

Sft = Callable[[], AbstractContextManager[Any]]  # SFT, live on the device, until the block ends
HELD = 1 << 28  # bytes of SFT's log-probabilities that wait for the other model's


def likelihoods(
    model: Any, samples: Sequence[Sample], lines: Sequence[int], tick: Tick, *, sft: Sft | None = None
) -> list[Likelihood]:
    """Every sample's.

    Args:
        model: live, in evaluation mode on its device.
        samples: prompts with responses.
        lines: of the data file, for messages.
        tick: told the samples that are done.
        sft: gives another live model: KL(it || model) instead of -log p. It may be the same one, with other weights for a while.

    Raises:
        DataError: if a sample does not fit the model.
        NonFiniteError: if a likelihood is no number.
        AmataxError: out of memory.
    """
    words = model.get_input_embeddings().weight.shape[0]
    for sample, line in zip(samples, lines, strict=True):
        if max(sample.ids) >= words:
            raise DataError(
                f"line {line}: token {max(sample.ids)} is beyond the model's {words} embeddings",
                "the tokenizer is another model's",
            )
    found = [0.0] * len(samples)
    whole = list(batches(samples, min(BATCH_TOKENS, most_tokens(model.config))))
    for group in _groups(whole, samples, words) if sft is not None else [whole]:
        logs: list[torch.Tensor | None] = [None] * len(group)
        if sft is not None:
            with sft() as other:
                for i, batch in enumerate(group):
                    with _hint(other, batch), torch.inference_mode():
                        logs[i] = response_logs(other, *pad([samples[place] for place in batch], other.device))
        for i, batch in enumerate(group):
            with _hint(model, batch), torch.inference_mode():
                for place, nats in zip(batch, _nats(model, logs[i], [samples[n] for n in batch]), strict=True):
                    found[place] = nats
            logs[i] = None
            tick(len(batch))
    for nats, line in zip(found, lines, strict=True):
        if nats != nats or abs(nats) == float("inf"):
            raise NonFiniteError(
                f"line {line}: the likelihood is {nats}", "look at the checkpoint: `amatax inspect` it"
            )
    return [Likelihood(nats, len(s.ids) - s.start) for nats, s in zip(found, samples, strict=True)]


def _groups(whole: Sequence[list[int]], samples: Sequence[Sample], words: int) -> Iterator[list[list[int]]]:
    """Batches of which SFT's log-probabilities, float32 (response tokens, vocabulary), are held at once."""
    group: list[list[int]] = []
    held = 0
    for batch in whole:
        size = 4 * words * sum(len(samples[i].ids) - samples[i].start for i in batch)
        if group and held + size > HELD:
            yield group
            group, held = [], 0
        group.append(batch)
        held += size
    yield group


def _hint(model: Any, batch: Sequence[int]) -> AbstractContextManager[None]:
    return memory_hint(f"on {model.device} with {len(batch)} samples", "use another --device, or shorter samples")


def _nats(model: Any, before: torch.Tensor | None, samples: Sequence[Sample]) -> list[float]:
    ids, mask, targets = pad(samples, model.device)
    wanted = targets != IGNORED
    losses = token_losses(response_logs(model, ids, mask, targets), targets[wanted], before)
    rows = wanted.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(samples), dtype=torch.float64).index_add(0, rows, losses.to("cpu", torch.float64))
    return [float(number) for number in sums]
