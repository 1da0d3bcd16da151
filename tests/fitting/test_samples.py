"""From responses to samples: whose tokens are whose, and which part a prompt is in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amatax.errors import DataError
from amatax.fitting.records import Record, read_records
from amatax.fitting.samples import Sample, split_off, tokenize


def test_the_parts_share_no_prompt(samples: list[Sample]) -> None:
    doubled = [*samples, *samples]
    train, held = split_off(doubled, 0.25, seed=1)
    assert len(held) == 12
    assert not {s.prompt for s in train} & {s.prompt for s in held}
    again = split_off(doubled[::-1], 0.25, seed=1)
    assert {s.prompt for s in again[1]} == {s.prompt for s in held}


def test_a_sample_ends_with_the_turn(samples: list[Sample], tokenizer: object, distilled: Path) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert all(s.ids[-1] == end and s.ids[s.start - 1] != end for s in samples)
    records, _ = read_records(distilled, responses=True)
    first = json.loads(distilled.read_text().splitlines()[0])
    assert tokenizer.decode(samples[0].ids[samples[0].start : -1]) == first["response"]
    cut = type(records[0])(1, {**first, "finish": "length"})
    (sample,), _ = tokenize([cut], tokenizer, raw=False)
    assert sample.ids == samples[0].ids[:-1]


def test_what_a_template_puts_before_a_response_is_the_prompts(tokenizer: object, distilled: Path) -> None:
    """Reasoning models' templates write an empty reasoning block before an answer that has none: RLHF did not say it."""
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}(thought: none) {% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = thinking.chat_template.replace("(thought: none) ", "")
    records, _ = read_records(distilled, responses=True)
    for one, other in zip(*(tokenize(records[:5], t, raw=False)[0] for t in (thinking, plain)), strict=True):
        assert one.ids[one.start :] == other.ids[other.start :]
        assert tokenizer.decode(one.ids[other.start : one.start]).strip() == "(thought: none)"


@pytest.mark.parametrize("raw", [True, False])
def test_a_response_without_a_token_is_refused(tokenizer: object, raw: bool) -> None:
    """Tokenizers without bytes drop what they do not know; the end of the turn, which the template adds, is no response."""
    import copy

    from tokenizers import Regex, normalizers

    dropping = copy.deepcopy(tokenizer)
    dropping.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^\\x00-\\x7f]"), "")
    assert dropping("\u65e5\u672c", add_special_tokens=False).input_ids == []
    with pytest.raises(DataError, match="line 7: the tokenizer turns the response into nothing"):
        tokenize([Record(7, {"prompt": "Hello", "response": "\u65e5\u672c"})], dropping, raw=raw)
