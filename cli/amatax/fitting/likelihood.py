"""-log p of responses under a merged model, or its divergence from SFT there, with gradients; over one process or many."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from amatax.errors import NonFiniteError
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.samples import Sample
from amatax.streaming.processes import rank_and_world

BATCH_TOKENS = 4096  # of a batch, padding included
IGNORED = -100  # where nothing is predicted
BATCH_LOGITS = 1 << 27  # numbers: tokens x vocabulary


@dataclass(frozen=True)
class Measured:
    """What one pass over samples found.

    Attributes:
        sums: -log p (or the divergence) over each sample's response, in nats; float64 (samples,).
        tokens: response tokens of each sample; float64 (samples,).
        gradient: of `mean` in the unknowns, float64 (unknowns,); None if it was not asked for.
    """

    sums: torch.Tensor
    tokens: torch.Tensor
    gradient: torch.Tensor | None

    @property
    def mean(self) -> float:
        """Nats per response token: sum over samples / number of response tokens (the data files' definition)."""
        return float(self.sums.sum() / self.tokens.sum())

    def slope(self) -> list[float]:
        """`gradient` as numbers.

        Raises:
            ValueError: of a pass without gradients.
        """
        if self.gradient is None:
            raise ValueError("a pass without gradients")
        return [float(number) for number in self.gradient]


def measure(
    merged: MergedModel,
    samples: Sequence[Sample],
    ratios: torch.Tensor | None = None,
    *,
    gradient: bool = False,
    divergence: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], None] = lambda n: None,
) -> Measured:
    """Run samples through the model. Under torch.distributed each rank takes its share, and all get the whole result.

    Args:
        merged: at its `variables`.
        samples: what is measured.
        ratios: float64 (groups,): fixed ratios instead of the variables'.
        gradient: also differentiate in the variables.
        divergence: KL(SFT || merged) with teacher forcing instead of -log p.
        batch_tokens: tokens of a batch; what comes out does not hang on it but by rounding.
        advance: told the samples that are done.

    Raises:
        NonFiniteError: if a likelihood is no number.
    """
    rank, world = rank_and_world()
    sums = torch.zeros(len(samples), dtype=torch.float64)
    tokens = torch.tensor([len(s.ids) - s.start for s in samples], dtype=torch.float64)
    merged.variables.grad = None
    config = getattr(merged.model, "config", None)
    share = -(-len(samples) * max(len(s.ids) for s in samples) // world)  # few samples are work for every process, too
    everyone = list(batches(samples, min(batch_tokens, most_tokens(config), share)))
    mine = everyone[rank::world]
    for batch in mine:
        losses, rows = _losses(merged, [samples[i] for i in batch], ratios, gradient, divergence)
        if gradient and losses.requires_grad:  # of one block at a held mean there is none
            losses.sum().backward()
        found = torch.zeros(len(batch), dtype=losses.dtype, device=losses.device)
        sums[batch] = found.index_add(0, rows, losses.detach()).to("cpu", torch.float64)
        advance(len(batch) * world)
    if merged.lockstep and len(mine) < -(-len(everyone) // world):  # the others need this process once more
        losses, _ = _losses(merged, [samples[i] for i in everyone[0]], ratios, gradient, divergence)
        if gradient and losses.requires_grad:
            (losses.sum() * 0).backward()
    slope = merged.variables.grad if merged.variables.grad is not None else torch.zeros_like(merged.variables)
    if world > 1:
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(slope)
    if not sums.isfinite().all():
        bad = sums[~sums.isfinite()]
        raise NonFiniteError(
            f"the likelihood of {len(bad)} of {len(sums)} responses is no number ({float(bad[0])})",
            "do SFT and RLHF give finite logits there? `--compute float32` has more range than float16",
        )
    return Measured(sums, tokens, slope / tokens.sum() if gradient else None)


def _losses(
    merged: MergedModel, samples: Sequence[Sample], ratios: torch.Tensor | None, gradient: bool, divergence: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one batch: what each response token adds, nats (tokens,), and the sample it belongs to, int64 (tokens,)."""
    ids, mask, targets = pad(samples, merged.device)
    wanted = targets != IGNORED
    before = None
    if divergence:
        with torch.no_grad(), merged.merging(merged.everywhere(0)):
            before = response_logs(merged.model, ids, mask, targets)
    with torch.set_grad_enabled(gradient), merged.merging(ratios):
        logs = response_logs(merged.model, ids, mask, targets)
        losses = token_losses(logs, targets[wanted], before)
    return losses, wanted.nonzero()[:, 0]


def token_losses(logs: torch.Tensor, tokens: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
    """What each response token adds, nats (tokens,).

    Args:
        logs: log p of the vocabulary under the model, (tokens, vocabulary).
        tokens: those that stand there, int64 (tokens,): -log p of them.
        before: log p under SFT, of the shape of `logs`: KL(SFT || model) instead.
    """
    if before is None:
        return -logs.gather(1, tokens[:, None])[:, 0]
    return F.kl_div(logs, before, reduction="none", log_target=True).sum(1)


def response_logs(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p of every word of the vocabulary where a response's token is next; float32 or wider (response tokens, vocabulary).

    Args:
        ids: int64 (rows, length), padded on the right.
        mask: int64 (rows, length), 0 at the padding.
        targets: int64 (rows, length): the next token where it is a response's, else IGNORED.
    """
    ids, mask, wanted = ids[:, :-1], mask[:, :-1], targets[:, :-1] != IGNORED  # what follows the last token is nobody's
    first = int(wanted.any(0).nonzero()[0])
    if "logits_to_keep" in inspect.signature(model.forward).parameters:  # the head is for responses alone
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first).logits
    else:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, first:]
    rows = logits.flatten(0, 1)
    where = wanted[:, first:].flatten().nonzero()[:, 0]
    if len(where) < len(rows):
        rows = rows.index_select(0, where)
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)


def pad(samples: Sequence[Sample], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, mask, targets), int64 (rows, longest)."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.zeros((len(samples), longest), dtype=torch.int64)
    targets = torch.full((len(samples), longest), IGNORED, dtype=torch.int64)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        targets[row, sample.start - 1 : len(sample.ids) - 1] = torch.tensor(sample.ids[sample.start :])
    mask = torch.tensor([[int(i < len(s.ids)) for i in range(longest)] for s in samples])
    return ids.to(device), mask.to(device), targets.to(device)


def batches(samples: Sequence[Sample], most: int) -> Iterator[list[int]]:
    """Samples of like length together, at most so many tokens; at least one sample in a batch."""
    batch: list[int] = []
    for i in sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), i)):
        if batch and (len(batch) + 1) * len(samples[batch[0]].ids) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def most_tokens(config: Any) -> int:
    """Of a batch, whatever else is asked for: a large vocabulary's logits would not fit otherwise."""
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    return max(1, BATCH_LOGITS // int(vocabulary or 1))
