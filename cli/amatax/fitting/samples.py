"""Records -> token ids with the response marked; the held-out part, drawn by prompt."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from amatax.errors import DataError
from amatax.fitting.records import RAW, Record, prompt_ids, prompt_text


class Sample(NamedTuple):
    """One response with what it answers.

    Attributes:
        ids: prompt and response, as the model sees them.
        start: index of the response's first token; the likelihood is of ids[start:].
        prompt: tells prompts apart, by what the model sees of them; the parts and the bootstrap go by it.
    """

    ids: list[int]
    start: int
    prompt: str


def tokenize(
    records: Sequence[Record], tokenizer: Any, *, raw: bool, max_length: int | None = None
) -> tuple[list[Sample], list[str]]:
    """Turn records into samples. A response's end-of-turn token counts, unless the response was cut off by its length.

    Args:
        records: each with a response.
        tokenizer: of transformers.
        raw: prompt and response as they are, without the chat template.
        max_length: tokens of a sample; longer ones are cut at the end.

    Returns:
        The samples, and notes on what was cut or left out.

    Raises:
        DataError: for a response that the tokenizer turns into nothing, or that the chat template loses.
    """
    samples, cut, lost = [], 0, 0
    for record in records:
        prompt = prompt_ids(record, tokenizer, raw=raw)
        given, response = _response_ids(record, prompt, tokenizer, raw)
        prompt = prompt + given
        if not response:
            raise DataError(f"line {record.line}: the tokenizer turns the response into nothing", "remove that line")
        ids = prompt + response
        if max_length is not None and len(ids) > max_length:
            cut += 1
            ids = ids[:max_length]
        if len(ids) <= len(prompt):
            lost += 1
            continue
        samples.append(Sample(ids, len(prompt), repr(prompt)))
    notes = []
    if cut:
        notes.append(f"{cut} samples are longer than {max_length} tokens: cut there")
    if lost:
        notes.append(f"nothing of the response is left in {lost} of them: not used")
    if not samples:
        raise DataError(f"no sample has a response within {max_length} tokens", "raise --max-length")
    return samples, notes


def split_off(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(fitted, held out): every prompt is wholly in one part; the draw hangs on the prompts alone, not on their order.

    Raises:
        DataError: if one part would be empty.
    """
    prompts = sorted({sample.prompt for sample in samples}, key=lambda p: hashlib.sha256(p.encode()).digest())
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: round(share * len(prompts))])
    parts = [s for s in samples if s.prompt not in held], [s for s in samples if s.prompt in held]
    if share and not (parts[0] and parts[1]):
        raise DataError(
            f"{len(prompts)} prompts cannot be split {1 - share:g} to {share:g}", "give more prompts, or --holdout 0"
        )
    return parts


def _response_ids(record: Record, prompt: list[int], tokenizer: Any, raw: bool) -> tuple[list[int], list[int]]:
    """(what a chat template puts before the response, an empty reasoning block say; the response and its end of turn)."""
    text = record.response or ""
    truncated = record.data.get("finish") == "length"
    if raw:
        prompt_text(record)
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        end = [] if truncated or tokenizer.eos_token_id is None or not ids else [tokenizer.eos_token_id]
        return [], ids + end
    turn = {"role": "assistant", "content": text}
    opened = tokenizer.apply_chat_template(record.messages, add_generation_prompt=True, tokenize=False)
    closed = tokenizer.apply_chat_template([*record.messages, turn], tokenize=False)
    if not closed.startswith(opened) or text.strip() not in closed[len(opened) :]:
        raise DataError(
            f"line {record.line}: the chat template does not write this conversation as its prompt and then the response",
            f"templates that drop earlier turns cannot be scored: give the last turn alone, or pass {RAW}",
        )
    if not tokenizer(text.strip(), add_special_tokens=False).input_ids:  # the end of the turn alone is no response
        return [], []
    after = closed[len(opened) :].rstrip()  # a line break after the end-of-turn token belongs to the next turn
    begin = after.index(text.strip())
    if truncated:
        after = after[: begin + len(text.strip())]
    before = after[:begin] if after[:begin].strip() else ""  # white space is the response's own
    given = list(tokenizer(before, add_special_tokens=False).input_ids) if before else []
    # as one text, for tokenizers that write the beginning of a text in another way than its middle
    whole, known = list(tokenizer(opened + after, add_special_tokens=False).input_ids), prompt + given
    if whole[: len(known)] == known:
        return given, whole[len(known) :]
    return given, list(tokenizer(after[len(before) :], add_special_tokens=False).input_ids)
