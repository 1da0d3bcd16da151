"""The journal of a distillation: every finished sample and reward, so that an interrupted run continues.

While a run works it is `D.jsonl.unfinished.jsonl`, locked against a second run; at the end it becomes `D.jsonl.samples.jsonl`,
which says what D.jsonl was made of and lets another selection be made without sampling again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amatax.errors import OutputError
from amatax.fitting.sampling import Sample

CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


def unfinished(output: Path) -> Path:
    """Where a run works until its output is whole."""
    return output.with_name(output.name + ".unfinished.jsonl")


def finished(output: Path) -> Path:
    """What stays beside a whole output: every sample, the unselected ones too."""
    return output.with_name(output.name + ".samples.jsonl")


class Journal:
    """What is known of a job; open it by `open_journal`.

    Attributes:
        head: what the responses depend on; None if there was no journal.
        foreign: the file is somebody else's.
        samples: by item.
        rewards: by the identity of what scored them, then by item.
        ending: how the last run ended: its selection, and the checksum of its output.
    """

    def __init__(self, output: Path, fd: int) -> None:
        self._output, self._fd = output, fd
        self._source = unfinished(output)
        if not os.fstat(fd).st_size and finished(output).exists():
            self._source = finished(output)
        self.head: dict[str, Any] | None = None
        self.samples: dict[int, Sample] = {}
        self.rewards: dict[str, dict[int, float]] = {}
        self.ending: dict[str, Any] | None = None
        self._lines: list[bytes] = []
        self._read()
        self.foreign = self.head is None and os.fstat(fd).st_size > 0

    @property
    def interrupted(self) -> bool:
        """Whether a run was stopped before its end."""
        return bool(self.samples) and self._source == unfinished(self._output)

    def begin(self, head: dict[str, Any], *, keep: bool) -> None:
        """Go on with what is here (`keep`), or start over; a line cut off by a crash goes either way."""
        if not keep:
            self.samples, self.rewards, self.ending = {}, {}, None
            os.ftruncate(self._fd, 0)
            self._write(_line(head))
        elif self._source == finished(self._output):
            self._write(b"".join(self._lines))
        else:
            os.ftruncate(self._fd, sum(map(len, self._lines)))
        self.head, self.foreign, self._source, self._lines = head, False, unfinished(self._output), []

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """In one write: a batch is in the journal as a whole, but for a crash of the machine."""
        samples = list(samples)
        self._write(b"".join(_line(sample.line()) for sample in samples))
        self.samples |= {sample.item: sample for sample in samples}

    def add_rewards(self, by: str, rewards: dict[int, float]) -> None:
        """Scores of `by`, by item."""
        self._write(b"".join(_line({"item": item, "reward": reward, "by": by}) for item, reward in rewards.items()))
        self.rewards.setdefault(by, {}).update(rewards)

    def end(self, ending: dict[str, Any]) -> None:
        """Say what the output will be, before it gets its name: a run killed in between is recognised as finished."""
        self._write(_line({"ending": ending}))
        os.fsync(self._fd)
        self.ending = ending

    def close_finished(self) -> None:
        """The output has its name: the journal gets its own."""
        if self._source == unfinished(self._output):
            unfinished(self._output).rename(finished(self._output))

    def _write(self, data: bytes) -> None:
        write_all(self._fd, data)

    def _read(self) -> None:
        """The whole lines up to the first that is none of ours."""
        try:
            lines = self._source.read_bytes().splitlines(keepends=True)
        except OSError:
            return
        for i, line in enumerate(lines):
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n") or not isinstance(entry, dict) or not self._take(entry, first=i == 0):
                    return
            except (ValueError, RecursionError):
                return
            self._lines.append(line)

    def _take(self, entry: dict[str, Any], *, first: bool) -> bool:
        """Whether a line is one of ours; if so, it is known from now on."""
        if first:
            self.head = entry if "distill" in entry else None
            return self.head is not None
        if isinstance(entry.get("ending"), dict):
            self.ending = entry["ending"]
            return True
        item, reward, by = entry.get("item"), entry.get("reward"), entry.get("by")
        if not isinstance(item, int):
            return False
        if isinstance(reward, int | float) and isinstance(by, str):
            self.rewards.setdefault(by, {})[item] = reward
            return True
        response, finish, tokens = entry.get("response"), entry.get("finish"), entry.get("tokens")
        if not isinstance(response, str) or finish not in ("stop", "length"):
            return False
        self.samples[item] = Sample(item, response, tokens if isinstance(tokens, int) else None, finish)
        return True


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The output's journal, locked against other runs (the lock dies with the process).

    Raises:
        OutputError: if another run is at work there.
    """
    path = unfinished(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    fd = open_locked(path)
    if fd is None:
        hint = "wait for it and run the same command again, or choose another output"
        raise OutputError(f"{output}: another run is distilling into this file", hint)
    try:
        journal = Journal(output, fd)
        try:
            yield journal
        finally:
            worthless = not os.fstat(fd).st_size or not (journal.samples or journal.foreign)
            if worthless and _is_at(path, fd):
                path.unlink()
    finally:
        os.close(fd)


def open_locked(path: Path) -> int | None:
    """A file to append to, locked; None if another run holds it, or finished just now and took it away."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = _is_at(path, fd)
    except OSError as error:
        ours = error.errno in CANNOT_LOCK
    if not ours:
        os.close(fd)
    return fd if ours else None


def write_all(fd: int, data: bytes) -> None:
    """However many writes that takes."""
    while data:
        data = data[os.write(fd, data) :]


def _is_at(path: Path, fd: int) -> bool:
    """Whether the open file is still the one of that name."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(fd))


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8")
