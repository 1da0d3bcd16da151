"""Nats of responses under a live model, by teacher forcing: -log p, or KL(SFT || model), as a fit measures them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amatax.errors import DataError, NonFiniteError
from amatax.evaluation.measures import Likelihood
from amatax.fitting.generation import Tick
from amatax.fitting.likelihood import BATCH_TOKENS, IGNORED, batches, most_tokens, pad, response_logs, token_losses
from amatax.fitting.memory import memory_hint
from amatax.fitting.samples import Sample


def likelihoods(
    model: Any, samples: Sequence[Sample], lines: Sequence[int], tick: Tick, *, sft: Any = None
) -> list[Likelihood]:
    """Every sample's.

    Args:
        model: live, in evaluation mode on its device.
        samples: prompts with responses.
        lines: of the data file, for messages.
        tick: told the samples that are done.
        sft: another live model: KL(it || model) instead of -log p.

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
    for batch in batches(samples, min(BATCH_TOKENS, most_tokens(model.config))):
        hint = (f"on {model.device} with {len(batch)} samples", "use another --device, or shorter samples")
        with memory_hint(*hint), torch.inference_mode():
            for place, nats in zip(batch, _nats(model, sft, [samples[i] for i in batch]), strict=True):
                found[place] = nats
        tick(len(batch))
    for nats, line in zip(found, lines, strict=True):
        if nats != nats or abs(nats) == float("inf"):
            raise NonFiniteError(
                f"line {line}: the likelihood is {nats}", "look at the checkpoint: `amatax inspect` it"
            )
    return [Likelihood(nats, len(s.ids) - s.start) for nats, s in zip(found, samples, strict=True)]


def _nats(model: Any, sft: Any, samples: Sequence[Sample]) -> list[float]:
    ids, mask, targets = pad(samples, model.device)
    wanted = targets != IGNORED
    before = response_logs(sft, ids, mask, targets) if sft is not None else None
    losses = token_losses(response_logs(model, ids, mask, targets), targets[wanted], before)
    rows = wanted.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(samples), dtype=torch.float64).index_add(0, rows, losses.to("cpu", torch.float64))
    return [float(number) for number in sums]
