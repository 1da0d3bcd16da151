"""Prompts and responses as JSONL: every bad line with its number and cause, and the tokens that a model is asked with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amatax.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHOWN = 5  # bad lines that a message names
RAW = "--raw (of a measure, `raw: true`)"  # how prompts are given as they are
FORMAT_HINT = 'a line is one JSON object: {"prompt": "...", "response": "..."}, or {"messages": [...]}'


@dataclass(frozen=True)
class Record:
    """One line of a data file.

    Attributes:
        line: its number in the file, from 1.
        data: the object, as written.
    """

    line: int
    data: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation before the response; a `prompt` is one user turn."""
        if "messages" not in self.data:
            return [{"role": "user", "content": self.data["prompt"]}]
        turns = self.data["messages"]
        return list(turns[:-1] if _ends_in_answer(turns) else turns)

    @property
    def response(self) -> str | None:
        """`response`, or the final assistant turn of `messages`; None if there is neither."""
        if "response" in self.data:
            return self.data["response"]
        turns = self.data.get("messages")
        return turns[-1]["content"] if turns and _ends_in_answer(turns) else None


def read_records(
    path: Path,
    *,
    responses: bool,
    most_bad: float | None = 0.0,
    check: Callable[[dict[str, Any]], None] = lambda data: None,
) -> tuple[list[Record], list[str]]:
    """Read a data file; blank lines are no records.

    Args:
        path: JSONL in UTF-8.
        responses: every record must hold a response that is not empty; otherwise responses are not looked at.
        most_bad: the share of bad lines, 0 to 1, up to which they are skipped and noted; None: that cannot be asked for.
        check: raises ValueError for a line that misses something else.

    Returns:
        The good records in file order, and notes for the user.

    Raises:
        DataError: if the file cannot be read, holds no record, or holds too many bad lines.
    """
    records: list[Record] = []
    bad: list[tuple[int, str]] = []
    # not splitlines(): U+2028 and its like may stand in a JSON string
    for number, text in enumerate(_read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            data = _parse(text)
            _check(data, responses)
            check(data)
        except ValueError as error:
            bad.append((number, str(error)))
        else:
            records.append(Record(number, data))
    count = len(records) + len(bad)
    if not count:
        raise DataError(f"{path}: the file is empty", FORMAT_HINT)
    if not bad:
        return records, []
    share = len(bad) / count
    lines = [f"line {number}: {cause}" for number, cause in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"... and {len(bad) - SHOWN} more")
    if most_bad is None or share > most_bad or not records:
        if not records and bad[0][0] == 1 and bad[0][1].startswith("a JSON array"):
            raise DataError(f"{path}: one JSON array, not a JSON object per line", f"`jq -c '.[]' {path} > P.jsonl`")
        allowed = f" ({share:.2%}, and {most_bad:.2%} are allowed)" if most_bad else ""
        skip = (
            f"; --max-bad {-(-100 * len(bad) // count) / 100:g} skips them" if records and most_bad is not None else ""
        )
        message = f"{path}: {len(bad)} of {count} lines cannot be used{allowed}"
        raise DataError("\n  ".join([message, *lines]), f"mend {'them' if len(bad) > 1 else 'it'}{skip}")
    return records, [f"{path}: {len(bad)} of {count} lines are skipped: {'; '.join(lines)}"]


def prompt_ids(record: Record, tokenizer: Any, *, raw: bool) -> list[int]:
    """The tokens that a model is asked with, up to and including what opens the answer.

    Args:
        record: whose conversation it is.
        tokenizer: a tokenizer of transformers.
        raw: the prompt's text as it is, without the chat template.

    Raises:
        DataError: without a chat template; if the template refuses the conversation; if nothing comes out.
    """
    if raw:
        ids = tokenizer(prompt_text(record)).input_ids
    else:
        if not tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template",
                f"pass {RAW} to give prompts as they are, or name the model with a template as the recipe's output.tokenizer",
            )
        try:
            ids = tokenizer.apply_chat_template(
                record.messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # jinja's, and whatever a template's own code meets
            raise DataError(
                f"line {record.line}: the chat template refuses this conversation: {error}",
                f"change the conversation, or pass {RAW} with `prompt`s that are formatted already",
            ) from error
    if not ids:
        raise DataError(f"line {record.line}: the tokenizer turns the prompt into nothing", "give it some text")
    return list(ids)


def prompt_text(record: Record) -> str:
    """The prompt as it is, for --raw.

    Raises:
        DataError: for a record of `messages`.
    """
    if "prompt" not in record.data:
        raise DataError(
            f"line {record.line}: --raw takes a `prompt`, and this line has `messages`",
            f"leave out {RAW}, or write the conversation as one formatted `prompt`",
        )
    text: str = record.data["prompt"]
    return text


def _ends_in_answer(turns: list[dict[str, str]]) -> bool:
    return turns[-1]["role"] == "assistant"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path; it is relative to the working directory") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not a JSONL file", "name the file in it") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 (byte {error.start})", "save it as JSONL in UTF-8") from None


def _parse(text: str) -> dict[str, Any]:
    """One line's object; ValueError says what else it is."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.strip() in ("[", "[{"):
            raise ValueError("a JSON array begins, not a JSON object") from None
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"a JSON {'array' if isinstance(data, list) else 'value'}, not a JSON object")
    if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is valid JSON, and no tokenizer takes it
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return data


def _check(data: dict[str, Any], responses: bool) -> None:
    """ValueError says why a line is no record."""
    if ("prompt" in data) == ("messages" in data):
        raise ValueError("both `prompt` and `messages`" if "prompt" in data else "no `prompt` and no `messages`")
    if "prompt" in data:
        if not isinstance(data["prompt"], str):
            turns = "; a list of turns is `messages`" if isinstance(data["prompt"], list) else ""
            raise ValueError(f"`prompt` is {_kind(data['prompt'])}, not text{turns}")
        if not data["prompt"].strip():
            raise ValueError("the prompt is empty")
    else:
        _check_messages(data["messages"], "response" in data)
    if not responses:
        return
    if "response" in data and not isinstance(data["response"], str):
        raise ValueError(f"`response` is {_kind(data['response'])}, not text")
    response = Record(0, data).response
    if response is None:
        raise ValueError("no `response`")
    if not response.strip():
        raise ValueError("the response is empty")


def _check_messages(turns: Any, has_response: bool) -> None:
    if not isinstance(turns, list) or not turns:
        raise ValueError("`messages` is an empty list" if turns == [] else f"`messages` is {_kind(turns)}, not a list")
    for i, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise ValueError(f"turn {i} of `messages` has no `content` that is text")
        if turn.get("role") not in ROLES:
            raise ValueError(f"turn {i} of `messages` has the role {turn.get('role')!r}, not one of {', '.join(ROLES)}")
    if _ends_in_answer(turns):
        if has_response:
            raise ValueError("both a `response` and a final assistant turn in `messages`")
        if len(turns) == 1:
            raise ValueError("`messages` has no turn before the answer")


def _kind(value: Any) -> str:
    """A JSON value's type in words."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds[type(value)]
