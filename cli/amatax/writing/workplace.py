"""The unfinished folder beside the output: one merge at a time, a journal of finished shards, and the rename that makes it whole.

Several processes may work on one merge: the first rank makes the folder ready and whole, the others add shards to it. Each writes a
journal of its own, as lines appended to one file from several machines may be lost; the next run reads all of them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from amatax import __version__
from amatax.errors import OutputError
from amatax.planning.destination import JOURNAL, WORK, State, state, strangers, unfinished
from amatax.planning.plan import Plan
from amatax.streaming.ranks import shown
from amatax.writing.locks import SHARE, locked, open_when_shown, stands_at
from amatax.writing.shards import is_whole

LOCK = "lock"  # in WORK; held alone, or by every rank of one merge together
OTHERS = "journal-*.jsonl"  # in WORK: what the ranks after the first have finished
REPLACED = "replaced"  # in WORK: what stood at the output until the new folder is there


class Carrier(Protocol):
    """Takes finished shards elsewhere, so that the disk need not hold them all."""

    def has(self, entry: dict[str, Any]) -> bool:
        """Whether a shard has arrived, by its journal entry."""

    def take(self, shard: Path) -> str:
        """Take a shard; what it returns stands as `carried` in the entry."""

    def finish(self, folder: Path) -> None:
        """Every shard was taken, and `folder` holds everything else."""


class Workplace:
    """Where a merge works until its folder is whole.

    Attributes:
        folder: `<output>.unfinished`; only finished files bear their final names in it.
        done: what the journal knows of finished shards, by file name.
        discarded: why earlier work was thrown away, if it was.
        begun: the folder is ours to write (and, while no shard is finished, to remove).
        given_up: it is not ours any more; somebody else may work there.
        whole: it has the output's name.
        shared: other ranks work there too, perhaps longer than this one.
    """

    def __init__(self, plan: Plan, folder: Path, output: Path, lock: int, rank: int = 0) -> None:
        self.folder = folder
        self._output, self._lock = output, lock
        self._journal = _journal_of(folder, rank)
        self.shared = rank > 0
        self._plan = plan
        self._head = {"amatax": __version__, "identity": plan.identity, "inputs": _inputs_of(plan)}
        self.done: dict[str, dict[str, Any]] = {}
        self.discarded = ""
        self.begun = self.given_up = self.whole = False

    def begin(self, *, overwrite: bool, carrier: Carrier | None = None) -> None:
        """Read the journal; keep what belongs to this very merge, of the same input files, and start over otherwise.

        Args:
            overwrite: begin anew where another merge left unfinished work.
            carrier: where finished shards were taken to, if they were.

        Raises:
            OutputError: if unfinished work of another merge stands here and `overwrite` is not set.
        """
        if foreign := strangers(self.folder):  # since the plan: everything else here is about to be removed
            message = f"{self.folder}, where amatax works, holds files that no merge left ({foreign[0]})"
            raise OutputError(message, "move them away, or choose another output folder")
        head, entries = self._read()
        replaced, output = self.folder / WORK / REPLACED, self._output
        if head != self._head and replaced.exists() and not output.exists():
            replaced.rename(output)  # a run was killed just before its end: another merge begins with what stood there
        if head == self._head:
            shards = {shard.file: shard for shard in self._plan.shards}
            self.done = {
                entry["file"]: entry
                for entry in entries
                if entry["file"] in shards and isinstance(entry.get("tensors"), dict)
                if (carrier is not None and "carried" in entry and carrier.has(entry))
                or is_whole(self.folder / entry["file"], shards[entry["file"]], entry["tensors"])
            }
        elif entries:
            if head.get("identity") != self._head["identity"] and not overwrite:
                raise OutputError(
                    f"{self.folder}: unfinished work of another merge (another recipe, or other inputs)",
                    "finish that one, choose another folder, or start over with --overwrite",
                )
            same = head.get("identity") == self._head["identity"] and head.get("amatax") == __version__
            self.discarded = (
                "the inputs have changed since the interrupted run: starting over" if same else "starting over"
            )
        for path in self.folder.iterdir():  # half-written files and what no journal line vouches for
            if path.name not in self.done and path.name != WORK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.begun = True
        self._write(self._journal, self._head, *self.done.values())  # a line cut off must not stand before new ones
        for path in (self.folder / WORK).glob(OTHERS):
            path.unlink()

    def invite(self, world: int) -> str:
        """Let the other ranks in: a journal for each, and the lock shared with them.

        Returns:
            What now stands in the lock's file, by which they know that they see this very folder.
        """
        self.shared = True
        for rank in range(1, world):
            self._write(_journal_of(self.folder, rank), self._head)
        token = secrets.token_hex(16)
        os.pwrite(self._lock, token.encode(), 0)
        os.fsync(self._lock)
        if not locked(self._lock, alone=False):
            raise _taken(self._output)
        return token

    def collect(self) -> None:
        """Take over what the other ranks have finished.

        Raises:
            OutputError: if a shard is not in any journal.
        """
        entries = shown(self._all_finished) if self.shared else []
        for entry in entries:
            self.done.setdefault(entry["file"], entry)
        if missing := [shard.file for shard in self._plan.shards if shard.file not in self.done]:
            raise OutputError(f"{self.folder}: another rank has finished {missing[0]}, which does not show here", SHARE)

    def finish_shard(self, partial: Path, entry: dict[str, Any]) -> None:
        """Give a shard its final name and write it into the journal."""
        partial.rename(self.folder / entry["file"])
        self._append(entry)
        self.done[entry["file"]] = entry

    def carry(self, carrier: Carrier) -> None:
        """Have every finished shard that is still here taken away; what is begun when the folder is given up changes nothing in it."""
        for name, entry in list(self.done.items()):
            shard = self.folder / name
            if "carried" not in entry or shard.exists():
                taken = carrier.take(shard)
                if self.given_up:
                    return
                self.done[name] = {**entry, "carried": taken}
                self._append(self.done[name])
                shard.unlink()

    def make_whole(self, output: Path, *, overwrite: bool) -> None:
        """Rename the folder to the output's name; what stood there before goes only then.

        Raises:
            OutputError: if something appeared there since the plan.
        """
        replaced = self.folder / WORK / REPLACED
        if output.exists():
            if not overwrite and any(output.iterdir()):
                raise OutputError(
                    f"{output}: something was written there meanwhile", "choose another folder, or --overwrite"
                )
            if replaced.exists():
                shutil.rmtree(replaced)
            output.rename(replaced)
        self.folder.rename(output)
        self.whole = True

    def discard(self) -> None:
        """Remove the folder, if the work in it was this very merge's."""
        if _json_lines(self._journal)[:1] == [self._head]:
            shutil.rmtree(self.folder)

    def _append(self, line: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The head of the journal, and what it and the other ranks' journals with the same head say of finished shards."""
        head, *entries = _json_lines(self._journal) or [{}]
        for path in sorted((self.folder / WORK).glob(OTHERS)):
            its, *more = _json_lines(path) or [{}]
            entries += more if its == head else []
        return head, [entry for entry in entries if isinstance(entry.get("file"), str)]

    def _all_finished(self) -> list[dict[str, Any]]:
        """What the journals say, once that is every shard."""
        entries = self._read()[1]
        there = {*self.done, *(entry["file"] for entry in entries)}
        return entries if all(shard.file in there for shard in self._plan.shards) else []

    def _write(self, journal: Path, *lines: dict[str, Any]) -> None:
        fresh = journal.with_name(journal.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        fresh.replace(journal)


def tidy(output: Path) -> None:
    """Take the last of the work out of a finished folder: the journal, the lock, and what the folder replaced."""
    shutil.rmtree(output / WORK, ignore_errors=True)


def discard(plan: Plan, output: Path) -> None:
    """Remove what a run left of this very merge, which is finished elsewhere."""
    if unfinished(output).exists():
        with workplace(plan, output) as work:
            work.discard()


@contextmanager
def workplace(plan: Plan, output: Path) -> Iterator[Workplace]:
    """The output's unfinished folder, locked against other merges (the lock dies with the process).

    Raises:
        OutputError: if another merge is at work there, or the folder cannot be made.
    """
    folder = unfinished(output)
    lock = folder / WORK / LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # held by another, or just renamed away by one that finished
        if not (locked(fd, alone=True) and stands_at(lock, fd)):
            raise _taken(output)
        if plan.found is State.ABSENT and state(output, plan.identity, plan.sizes) is State.SAME:
            shutil.rmtree(folder)  # made by us just now: the other has renamed its own
            raise OutputError(f"{output}: another merge has just finished this folder", "nothing is left to do")
        work = Workplace(plan, folder, output, fd)
        try:
            yield work
        except BaseException:
            if work.begun and not work.done and not work.shared:
                shutil.rmtree(folder, ignore_errors=True)  # nothing in it is worth continuing
            raise
        finally:
            work.given_up = True
    finally:
        os.close(fd)
    if work.whole:
        tidy(output)  # now that its lock is closed: a network file system keeps the name of an open file


@contextmanager
def shared_workplace(plan: Plan, output: Path, rank: int, token: str) -> Iterator[Workplace]:
    """The same folder for a rank after the first, when that one has made it ready.

    Args:
        token: what `invite` returned there.

    Raises:
        OutputError: if this machine does not see that folder.
    """
    folder = unfinished(output)
    fd = open_when_shown(folder / WORK / LOCK, token)
    try:
        if not locked(fd, alone=False):
            raise _taken(output)
        yield Workplace(plan, folder, output, fd, rank)
    finally:
        os.close(fd)


def _inputs_of(plan: Plan) -> dict[str, list[list[Any]]]:
    """What tells that the input files are still the same ones; a commit's never change, whenever they were downloaded."""
    return {
        role: [
            [name, f.size, f.header, *((f.mtime_ns, f.ctime_ns) if commit is None else ())]
            for name, f, commit in checkpoint.inputs
        ]
        for role, checkpoint in plan.checkpoints.items()
    }


def _taken(output: Path) -> OutputError:
    hint = "wait for it and run the same command again, or choose another folder"
    return OutputError(f"{output}: another merge is writing this folder", hint)


def _journal_of(folder: Path, rank: int) -> Path:
    return folder / WORK / (OTHERS.replace("*", str(rank)) if rank else JOURNAL)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The journal's whole lines; a line cut off by a crash ends it."""
    lines = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if not isinstance(line, dict):
                break
            lines.append(line)
    except (OSError, ValueError, RecursionError):
        pass
    return lines
