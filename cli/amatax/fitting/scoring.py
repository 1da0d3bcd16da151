"""Rewards by a sequence-classification model, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import CheckpointError, DataError
from amatax.fitting.loading import load_model
from amatax.fitting.memory import memory_hint, sampling_hint
from amatax.fitting.rewards import Pair
from amatax.fitting.tokens import first_line, open_tokenizer
from amatax.streaming.stream import pick_device


def open_reward_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The reward model's tokenizer, after a look at all of the model but its weights.

    Raises:
        CheckpointError: with several labels, without a template, or without a tokenizer.
    """
    tokenizer = open_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{checkpoint.ref}: the reward model's tokenizer has no chat template",
            "put a chat_template.jinja in its folder: it says how a conversation is read",
        )
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    if config.num_labels != 1:
        raise CheckpointError(
            f"{checkpoint.ref}: {config.num_labels} labels, and a reward is one number",
            "name a sequence-classification model with one label",
        )
    return tokenizer


class RewardModel(NamedTuple):
    """A loaded one, with its tokenizer; `ref` names it."""

    ref: str
    model: Any
    tokenizer: Any
    device: torch.device


def load_reward_model(checkpoint: Checkpoint, batch_size: int, *, device: str, trust_remote_code: bool) -> RewardModel:
    """Load the model.

    Raises:
        CheckpointError: if it cannot be loaded, or its head is missing.
        AmataxError: out of memory.
    """
    where = pick_device(device)
    tokenizer = open_reward_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    with memory_hint(*sampling_hint(batch_size, where)):
        model = load_model(checkpoint, reward=True, trust_remote_code=trust_remote_code).to(where)
    return RewardModel(checkpoint.ref, model, tokenizer, where)


def score_batches(
    loaded: RewardModel, pairs: Sequence[Pair], *, batch_size: int, notes: list[str]
) -> Iterator[dict[int, float]]:
    """Score conversation by conversation, right-padded.

    Raises:
        DataError: if the template refuses a conversation, or a reward is not finite.
        AmataxError: out of memory.
    """
    ref, model, tokenizer, where = loaded
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longer = 0
    for i in range(0, len(pairs), batch_size):
        batch = pairs[i : i + batch_size]
        rows = [_ids(tokenizer, record.messages, response, record.line) for _, record, response in batch]
        if limit:
            longer += sum(len(row) > limit for row in rows)
            rows = [row[-limit:] for row in rows]  # the answer stands at the end
        logits = _logits(model, tokenizer, rows, where)
        for reward, (_, record, _) in zip(logits, batch, strict=True):
            if not torch.isfinite(torch.tensor(reward)):
                raise DataError(
                    f"{ref} gives {reward} for the response to line {record.line}",
                    "look at the reward model: a reward is a finite number",
                )
        yield {item: reward for (item, _, _), reward in zip(batch, logits, strict=True)}
    if longer:
        notes.append(f"{longer} conversations are longer than the reward model's {limit} positions: it read their ends")


def _ids(tokenizer: Any, messages: list[dict[str, str]], response: str, line: int) -> list[int]:
    conversation = [*messages, {"role": "assistant", "content": response}]
    try:
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    except Exception as error:
        raise DataError(
            f"line {line}: the reward model's chat template refuses this conversation: {first_line(error)}",
            "change the conversation, or score with a function (--reward FILE.py:function)",
        ) from error
    return list(ids)


def _logits(model: Any, tokenizer: Any, rows: list[list[int]], device: torch.device) -> list[float]:
    """One number for each row."""
    config = model.config.get_text_config()
    if config.pad_token_id is not None:
        pad = config.pad_token_id
    else:  # decoders read the last token that is not the pad token: one that stands in no row moves nothing
        used = {token for row in rows for token in row}
        pad = next((token for token in range(len(tokenizer)) if token not in used), 0)
    longest = max(map(len, rows))
    with memory_hint(*sampling_hint(len(rows), device)), torch.inference_mode(), _padding(config, pad):
        output = model(
            input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device),
            attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device),
        )
    return [float(number) for number in output.logits[:, 0].float().tolist()]


@contextmanager
def _padding(config: Any, pad: int) -> Iterator[None]:
    """The config's pad token, for one batch."""
    own, config.pad_token_id = config.pad_token_id, pad
    try:
        yield
    finally:
        config.pad_token_id = own
