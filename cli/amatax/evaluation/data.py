"""A measure's data: records that hold the columns it needs, every bad line with its number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from amatax.errors import DataError
from amatax.evaluation.declared import Declared
from amatax.fitting.records import Record, read_records


@dataclass(frozen=True)
class Data:
    """What a measure is taken on.

    Attributes:
        records: every record of the file.
        wanted: the places, from 0, of those that the measure's `where` picks.
        sha256: of the file.
    """

    records: list[Record]
    wanted: list[int]
    sha256: str

    @property
    def picked(self) -> list[Record]:
        """The records that are wanted."""
        return [self.records[place] for place in self.wanted]


def read_data(declared: Declared) -> Data:
    """Read a measure's file.

    Raises:
        DataError: if it cannot be read, holds a line that does not fit the measure, or nothing that `where` picks.
    """
    needs, where = declared.needs, declared.options.get("where") or {}
    assert declared.data is not None  # `declared_measures` has seen to it

    def check(data: dict[str, Any]) -> None:
        if not _picked(data, where):
            return
        if "references" in needs:
            _check_references(data)
        if "choices" in needs:
            _check_choices(data)
        if "divergence" in needs:
            _check_answer(data)

    records, _ = read_records(declared.data, responses="likelihood" in needs, most_bad=None, check=check)
    wanted = [place for place, record in enumerate(records) if _picked(record.data, where)]
    if not wanted:
        known = ", ".join(sorted({key for record in records for key in record.data}))
        raise DataError(f"{declared.data}: no line is {where}", f"its keys are {known}")
    return Data(records, wanted, hashlib.sha256(declared.data.read_bytes()).hexdigest())


def references(record: Record) -> tuple[str, ...]:
    """The right answers: `references`, else the response."""
    return tuple(record.data["references"]) if "references" in record.data else (record.response or "",)


def right_choice(record: Record) -> int:
    """The index of the right choice: `answer` is that, or the choice itself."""
    answer, choices = record.data["answer"], record.data["choices"]
    return choices.index(answer) if isinstance(answer, str) else int(answer)


def as_choice(record: Record, choice: str, *, raw: bool) -> Record:
    """The prompt with a choice as its response; a raw text does not end after it."""
    messages: dict[str, Any] = {"prompt": record.data["prompt"]} if raw else {"messages": record.messages}
    return Record(record.line, {**messages, "response": choice, **({"finish": "length"} if raw else {})})


def _picked(data: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(key in data and data[key] == value for key, value in where.items())


def _check_references(data: dict[str, Any]) -> None:
    """ValueError says what is wrong with a line's right answers."""
    if "references" in data:
        given = data["references"]
        if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
            raise ValueError("`references` is no list of texts")
        return
    if "response" in data and not isinstance(data["response"], str):
        raise ValueError("`response` is not text")
    if not (Record(0, data).response or "").strip():
        raise ValueError("no right answer: neither `response` nor `references`")


def _check_answer(data: dict[str, Any]) -> None:
    """ValueError for a response that is there and is none."""
    if "response" in data and not (isinstance(data["response"], str) and data["response"].strip()):
        raise ValueError("`response` is no text, or empty; without the key SFT answers")


def _check_choices(data: dict[str, Any]) -> None:
    """ValueError says what is wrong with a line's choices."""
    choices, answer = data.get("choices"), data.get("answer")
    if not isinstance(choices, list) or not all(isinstance(text, str) and text.strip() for text in choices):
        raise ValueError("`choices` is no list of texts")
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choices, and at least two are needed")
    if len(set(choices)) < len(choices):
        raise ValueError("a choice stands twice")
    if isinstance(answer, str):
        if answer not in choices:
            raise ValueError(f"`answer` {answer!r} is none of the choices")
    elif isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"`answer` is neither a choice nor the index of one (0 to {len(choices) - 1})")
