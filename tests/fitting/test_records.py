"""Data files: what is read, and what is said of each bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amatax.errors import DataError
from amatax.fitting.records import Record, prompt_ids, read_records


def write(folder: Path, *lines: Any) -> Path:
    """Lines as they are if they are text, else as JSON."""
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


def refused(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_records(path, **{"responses": True, **options})
    return caught.value


def test_forms_of_a_record(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "Who?", "response": "Me.", "thing": 3},
        "",
        {"messages": turns("system", "user", "assistant", "user"), "response": "so"},
        {"messages": turns("user", "assistant", "user", "assistant")},
        {"prompt": "line\u2028separator", "response": "x"},
    )
    records, notes = read_records(path, responses=True)
    assert notes == []
    assert [record.line for record in records] == [1, 3, 4, 5]
    assert [record.response for record in records] == ["Me.", "so", "assistant 3", "x"]
    assert records[0].messages == [{"role": "user", "content": "Who?"}]
    assert records[0].data["thing"] == 3
    assert [turn["role"] for turn in records[1].messages] == ["system", "user", "assistant", "user"]
    assert [turn["role"] for turn in records[2].messages] == ["user", "assistant", "user"]


def test_a_separator_in_a_string_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "a\u2028b"}\r\n{"prompt": "c"}'.encode())
    records, _ = read_records(path, responses=False)
    assert [record.data["prompt"] for record in records] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "not JSON ("),
        ('"text"', "a JSON value, not a JSON object"),
        ("[1]", "a JSON array, not a JSON object"),
        ("[" * 100_000, "not JSON ("),
        ({"response": "a"}, "no `prompt` and no `messages`"),
        ({"prompt": "a", "messages": turns("user"), "response": "a"}, "both `prompt` and `messages`"),
        ({"prompt": None, "response": "a"}, "`prompt` is null, not text"),
        ({"prompt": turns("user"), "response": "a"}, "`prompt` is a list, not text; a list of turns is `messages`"),
        ({"prompt": " ", "response": "a"}, "the prompt is empty"),
        ({"prompt": "a"}, "no `response`"),
        ({"prompt": "a", "response": 3}, "`response` is a number, not text"),
        ({"prompt": "a", "response": " \n"}, "the response is empty"),
        ({"messages": turns("user")}, "no `response`"),
        ({"messages": [], "response": "a"}, "`messages` is an empty list"),
        ({"messages": "a", "response": "a"}, "`messages` is text, not a list"),
        ({"messages": [{"role": "user"}], "response": "a"}, "turn 1 of `messages` has no `content` that is text"),
        ({"messages": turns("user", "robot"), "response": "a"}, "turn 2 of `messages` has the role 'robot'"),
        ({"messages": turns("user", "assistant"), "response": "a"}, "both a `response` and a final assistant turn"),
        ({"messages": turns("assistant")}, "`messages` has no turn before the answer"),
        (r'{"prompt": "a", "response": "\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_cause(tmp_path: Path, line: Any, cause: str) -> None:
    good = {"prompt": "a", "response": "b"}
    error = refused(write(tmp_path, good, line, good, good))
    assert "data.jsonl: 1 of 4 lines cannot be used" in error.message
    assert f"line 2: {cause}" in error.message
    assert error.hint == "mend it; --max-bad 0.25 skips them"
    records, notes = read_records(tmp_path / "data.jsonl", responses=True, most_bad=0.25)
    assert [record.line for record in records] == [1, 3, 4]
    assert len(notes) == 1
    assert f"1 of 4 lines are skipped: line 2: {cause}" in notes[0]


def test_prompts_need_no_response(tmp_path: Path) -> None:
    records, _ = read_records(write(tmp_path, {"prompt": "a"}, {"messages": turns("user")}), responses=False)
    assert [record.response for record in records] == [None, None]


def test_too_many_bad_lines(tmp_path: Path) -> None:
    path = write(tmp_path, *["nothing"] * 7, *[{"prompt": "a", "response": "b"}] * 93)
    error = refused(path, most_bad=0.05)
    assert "7 of 100 lines cannot be used (7.00%, and 5.00% are allowed)" in error.message
    assert error.message.count("\n  line ") == 5
    assert "... and 2 more" in error.message
    assert error.hint == "mend them; --max-bad 0.07 skips them"
    assert len(read_records(path, responses=True, most_bad=0.07)[0]) == 93


def test_nothing_good_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    assert "2 of 2 lines" in refused(write(tmp_path, "a", "b"), most_bad=1.0).message


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.jsonl").message
    assert "a folder" in refused(tmp_path).message
    assert "the file is empty" in refused(write(tmp_path)).message
    assert "the file is empty" in refused(write(tmp_path, "", "  ")).message
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "ä"}'.encode("latin-1"))
    assert "not text in UTF-8 (byte 12)" in refused(path).message
    for text in ('[{"prompt": "a"}]', '[\n  {\n    "prompt": "a"\n  }\n]'):
        path.write_text(text)
        error = refused(path)
        assert "one JSON array" in error.message
        assert "jq -c" in error.hint


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from amatax.recipes.gallery import gallery_folder

    return AutoTokenizer.from_pretrained(gallery_folder() / "family" / "sft")


def test_the_template_opens_the_answer(tokenizer: Any) -> None:
    ids = prompt_ids(Record(1, {"prompt": "What is 2 + 2?"}), tokenizer, raw=False)
    assert tokenizer.decode(ids).replace(" ", "") == "<|user|>Whatis2+2?<|end|><|assistant|>"
    record = Record(1, {"messages": turns("user", "assistant", "user")})
    assert tokenizer.decode(prompt_ids(record, tokenizer, raw=False)).count("<|assistant|>") == 2


def test_raw_is_the_text_as_it_is(tokenizer: Any) -> None:
    ids = prompt_ids(Record(1, {"prompt": "What is 2 + 2?"}), tokenizer, raw=True)
    assert "<|" not in tokenizer.decode(ids)
    with pytest.raises(DataError, match="line 7: --raw takes a `prompt`"):
        prompt_ids(Record(7, {"messages": turns("user")}), tokenizer, raw=True)


def test_a_template_that_refuses(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"line 4: the chat template refuses.*only user and assistant"):
        prompt_ids(Record(4, {"messages": turns("system", "user")}), tokenizer, raw=False)


def test_no_template(tokenizer: Any) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(DataError, match="no chat template") as caught:
            prompt_ids(Record(1, {"prompt": "a"}), tokenizer, raw=False)
    finally:
        tokenizer.chat_template = template
    assert "--raw" in caught.value.hint
    assert "output.tokenizer" in caught.value.hint
