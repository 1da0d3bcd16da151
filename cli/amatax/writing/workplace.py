"""The unfinished folder beside the output: one merge at a time, a journal of finished shards, and the rename that makes it whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amatax import __version__
from amatax.errors import OutputError
from amatax.planning.destination import WORK, unfinished
from amatax.planning.plan import Plan
from amatax.writing.shards import is_whole

LOCK = "lock"
JOURNAL = "journal.jsonl"
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


class Workplace:
    """Where a merge works until its folder is whole.

    Attributes:
        folder: `<output>.unfinished`; only finished files bear their final names in it.
        done: what the journal knows of finished shards, by file name.
        discarded: why earlier work was thrown away, if it was.
        begun: the folder is ours to write (and, while no shard is finished, to remove).
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.folder = folder
        self._journal = folder / WORK / JOURNAL
        inputs = {
            role: [[f.path.name, f.size, f.header, f.mtime_ns, f.ctime_ns] for f in checkpoint.files]
            for role, checkpoint in plan.checkpoints.items()
        }
        self._plan = plan
        self._head = {"amatax": __version__, "identity": plan.identity, "inputs": inputs}
        self.done: dict[str, dict[str, Any]] = {}
        self.discarded = ""
        self.begun = False

    def begin(self, *, overwrite: bool) -> None:
        """Read the journal; keep what belongs to this very merge, of the same input files, and start over otherwise.

        Raises:
            OutputError: if unfinished work of another merge stands here and `overwrite` is not set.
        """
        strangers = [path.name for path in self.folder.iterdir() if path.name != WORK]
        if strangers and not self._journal.exists():
            message = f"{self.folder}: amatax would work here, but it holds files of others ({strangers[0]})"
            raise OutputError(message, "move them, or choose another output folder")
        head, *entries = _json_lines(self._journal) or [{}]
        if head == self._head:
            shards = {shard.file: shard for shard in self._plan.shards}
            self.done = {
                entry["file"]: entry
                for entry in entries
                if is_whole(self.folder / entry["file"], shards[entry["file"]], entry["tensors"])
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
        if not self.done:
            self._append(self._head, fresh=True)

    def finish_shard(self, partial: Path, entry: dict[str, Any]) -> None:
        """Give a shard its final name and write it into the journal."""
        partial.rename(self.folder / entry["file"])
        self._append(entry)
        self.done[entry["file"]] = entry

    def make_whole(self, output: Path, *, overwrite: bool) -> None:
        """Rename the folder to the output's name; what stood there before goes only then.

        Raises:
            OutputError: if something appeared there since the plan.
        """
        replaced = output.with_name(output.name + ".replaced")
        if output.exists():
            if not overwrite and any(output.iterdir()):
                raise OutputError(
                    f"{output}: something was written there meanwhile", "choose another folder, or --overwrite"
                )
            if replaced.exists():
                shutil.rmtree(replaced)
            output.rename(replaced)
        self.folder.rename(output)
        shutil.rmtree(output / WORK, ignore_errors=True)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _append(self, line: dict[str, Any], *, fresh: bool = False) -> None:
        with self._journal.open("w" if fresh else "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


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
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = lock.exists() and os.path.samestat(lock.stat(), os.fstat(fd))
        except OSError as error:
            ours = error.errno in CANNOT_LOCK
        if not ours:  # held by another, or just renamed away by one that finished
            hint = "wait for it and run the same command again, or choose another folder"
            raise OutputError(f"{output}: another merge is writing this folder", hint)
        work = Workplace(plan, folder)
        try:
            yield work
        except BaseException:
            if work.begun and not work.done:
                shutil.rmtree(folder, ignore_errors=True)  # nothing in it is worth continuing
            raise
    finally:
        os.close(fd)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The journal's whole lines; a line cut off by a crash ends it."""
    lines = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if not isinstance(line, dict):
                break
            lines.append(line)
    except (OSError, ValueError):
        pass
    return lines
