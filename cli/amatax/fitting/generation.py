"""Sampling from the model at hand, with transformers: left-padded batches in file order, a stream of random numbers for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import DataError, NonFiniteError
from amatax.fitting.cache import cache_for
from amatax.fitting.loading import load_model
from amatax.fitting.memory import memory_hint, sampling_hint
from amatax.fitting.records import Record
from amatax.fitting.sampling import Sample, Sampling, seed_of
from amatax.fitting.tokens import end_tokens

Tick = Callable[[int], None]  # told now and then how many samples have ended since


class _Draw(transformers.LogitsProcessor):
    """Leaves one token of the scores, drawn by each row's own numbers: what a sample is does not hang on its neighbours.

    transformers' own sampling takes all rows' numbers from one generator; here row i's token at step t comes from number t of
    the generator with row i's seed, by the inverse of the cumulative distribution, in float64.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], start: int, new: int, ends: Sequence[int]) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._numbers = torch.stack([torch.rand(new, generator=g, dtype=torch.float64) for g in generators])
        self._temperature, self._start = sampling.temperature, start
        self._top_p = transformers.TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None
        self._ends = torch.tensor(list(ends))
        self._going = torch.ones(len(seeds), dtype=torch.bool)
        self.ended = 0

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:  # (rows, length), (rows, vocabulary)
        if self._temperature == 0:
            token = scores.argmax(-1, keepdim=True)
        else:
            scores = scores.double() / self._temperature
            if self._top_p is not None:
                scores = self._top_p(input_ids, scores)
            below = scores.softmax(-1).cumsum(-1)
            number = self._numbers[:, input_ids.shape[1] - self._start, None].to(scores.device)
            token = torch.searchsorted(below, number * below[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
        if not scores.gather(1, token).isfinite().all():
            raise NonFiniteError("the model's logits are not finite", "look at the checkpoint: `amatax inspect` it")
        ending = self._going & torch.isin(token[:, 0].cpu(), self._ends)
        self.ended = int(ending.sum())
        self._going &= ~ending
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter_(1, token, 0.0)


class _Tell(transformers.StoppingCriteria):
    """Never stops; tells after every token how many samples have ended with it."""

    def __init__(self, draw: _Draw, tick: Tick) -> None:
        self._draw, self._tick = draw, tick

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._tick(self._draw.ended)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def sample_batches(
    checkpoint: Checkpoint,
    tokenizer: Any,
    records: Sequence[Record],
    prompts: Sequence[list[int]],
    batches: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    device: torch.device,
    trust_remote_code: bool,
    tick: Tick,
) -> Iterator[list[Sample]]:
    """Load the model and answer, batch by batch.

    Args:
        checkpoint: the model, in the dtype it is stored in.
        tokenizer: which made the prompts' ids.
        records: for messages.
        prompts: the ids of each record's prompt.
        batches: items (prompt index * n + sample index) in the batches they are always sampled in.
        tick: see Tick; at the end of a batch every sample has been told of.

    Raises:
        CheckpointError: if transformers cannot load the model, or it generates no text.
        DataError, NonFiniteError, AmataxError: see `answer_batches`.
    """
    with memory_hint(*sampling_hint(len(batches[0]), device)):
        model = load_model(checkpoint, trust_remote_code=trust_remote_code).to(device)
    yield from answer_batches(model, tokenizer, records, prompts, batches, sampling, tick=tick)


def answer_batches(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    prompts: Sequence[list[int]],
    batches: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    tick: Tick,
) -> Iterator[list[Sample]]:
    """Answer with a live model, in evaluation mode on its device, batch by batch; the rest as of `sample_batches`.

    Raises:
        DataError: if a prompt does not fit the model.
        NonFiniteError: if its logits are not finite.
        AmataxError: out of memory.
    """
    device = model.device
    ends = end_tokens(tokenizer, model.generation_config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    # nothing of the checkpoint's own habits (top_k, repetition_penalty): the proxy set is drawn from the model as it is
    plain = transformers.GenerationConfig(eos_token_id=ends or None, pad_token_id=pad)
    room = _room(model, records, prompts)
    for batch in batches:
        asked = [prompts[item // sampling.n] for item in batch]
        longest = max(map(len, asked))
        new = min(sampling.max_new_tokens, room - longest) if room else sampling.max_new_tokens
        seeds = [seed_of(sampling.seed, item, sampling.n) for item in batch]
        draw = _Draw(sampling, seeds, longest, new, ends)
        told = 0

        def tell(ended: int) -> None:
            nonlocal told
            told += ended
            tick(ended)

        with memory_hint(*sampling_hint(len(batch), device)), torch.inference_mode(), _generating_by(model, plain):
            output = model.generate(
                input_ids=torch.tensor([[pad] * (longest - len(ids)) + ids for ids in asked], device=device),
                attention_mask=torch.tensor(
                    [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked], device=device
                ),
                past_key_values=cache_for(model, longest + new),
                max_new_tokens=new,
                do_sample=False,  # the one token that is left is the drawn one
                logits_processor=transformers.LogitsProcessorList([draw]),
                stopping_criteria=transformers.StoppingCriteriaList([_Tell(draw, tell)]),
            )
        tick(len(batch) - told)
        yield [
            _sample(tokenizer, item, row, set(ends))
            for item, row in zip(batch, output[:, longest:].tolist(), strict=True)
        ]


@contextmanager
def _generating_by(model: Any, config: Any) -> Iterator[None]:
    """The model's generation config, for one batch: a live model keeps its own."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def _room(model: Any, records: Sequence[Record], prompts: Sequence[list[int]]) -> int | None:
    """How many tokens the model takes, if its config says; every prompt must leave room for one."""
    words = model.get_input_embeddings().weight.shape[0]
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None) or None
    for record, ids in zip(records, prompts, strict=True):
        if max(ids) >= words:
            raise DataError(
                f"line {record.line}: token {max(ids)} is beyond the model's {words} embeddings",
                "the tokenizer is another model's: see the recipe's output.tokenizer",
            )
        if room and len(ids) >= room:
            raise DataError(
                f"line {record.line}: the prompt has {len(ids)} tokens and the model {room} positions: no room to answer",
                "shorten this prompt or leave it out",
            )
    return room


def _sample(tokenizer: Any, item: int, row: list[int], ends: set[int]) -> Sample:
    """A row of new tokens, up to the first that ends it."""
    at = next((i for i, token in enumerate(row) if token in ends), None)
    ids = row if at is None else row[:at]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Sample(item, text, len(ids) + (at is not None), "length" if at is None else "stop")
