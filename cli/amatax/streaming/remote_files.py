"""Input files on the Hub, read as if they were here: one request for a tensor, which goes on where a connection breaks."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from amatax import __version__
from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.hub_client import range_options
from amatax.checkpoints.hub_errors import hub_error, unreachable
from amatax.errors import HubError
from amatax.streaming.buffers import Files

ATTEMPTS = 5  # at a range that brings no byte
LONGEST = 8.0  # seconds between two of them
EXPIRED = (401, 403, 404, 410)  # what a link to the storage answers when its time is over


class RemoteFile:
    """A weight file of a repository at a commit.

    Args:
        checkpoint: what it belongs to, opened by its headers.
        path: where it would stand.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path) -> None:
        self.repo, self.commit = checkpoint.ref.partition("@")[0], str(checkpoint.commit)
        self.name = checkpoint.name_of(path)
        entries = [entry for entry in checkpoint.tensors.values() if entry.path == path]
        self._begins = sorted(entry.offset for entry in entries)
        self._ends = {entry.offset: entry.offset + entry.nbytes for entry in entries}
        self._direct = ""  # where the Hub sends readers of this file

    def end(self, offset: int) -> int:
        """Where the tensor ends that holds this byte."""
        return self._ends[self._begins[bisect_right(self._begins, offset) - 1]]

    def open(self, begin: int, end: int) -> tuple[Any, Any]:
        """(context to leave, response) of a range.

        Raises:
            HubError: if something else comes.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        direct = self._direct
        url = direct or hf_hub_url(self.repo, self.name, revision=self.commit)
        headers = {} if direct else build_hf_headers(library_name="amatax", library_version=__version__)
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        context = http_stream_backoff("GET", url, headers=headers, **range_options())
        response = context.__enter__()
        if direct and response.status_code in EXPIRED:
            context.__exit__(None, None, None)
            self._direct = ""
            return self.open(begin, end)
        try:
            hf_raise_for_status(response)
            if response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(
                f"bytes {begin}-"
            ):
                hint = "is HF_ENDPOINT a mirror that has no ranges? merge without --stream"
                raise HubError(f"{self.repo}: the server sent no part of {self.name}, but something else", hint)
        except BaseException:
            context.__exit__(None, None, None)
            raise
        if response.history:  # the next one goes there at once, without a token
            self._direct = str(response.url)
        return context, response


class RemoteFiles(Files):
    """Files of which some are on the Hub.

    Args:
        far: those, by the path under which their tensors are planned.
    """

    parts = False  # each would be a request

    def __init__(self, far: Mapping[Path, RemoteFile]) -> None:
        super().__init__()
        self._far = far
        self._ours = threading.local()  # every worker reads its own tensors, each in order

    def named(self, path: Path) -> str:
        """A file for people: one on the Hub by its repository and commit."""
        file = self._far.get(path)
        return f"{file.repo}@{file.commit[:12]}: {file.name}" if file is not None else super().named(path)

    def read(self, path: Path, into: memoryview, offset: int) -> None:
        """Fill `into` from a file.

        Raises:
            InputChangedError: of a file that is here.
            HubError: if the Hub stops sending.
        """
        file = self._far.get(path)
        if file is None:
            super().read(path, into, offset)
            return
        ranges: dict[Path, _Range] = self._ours.__dict__.setdefault("ranges", {})
        current = ranges.get(path)
        if current is None or current.position != offset:
            if current is not None:
                current.close()
            current = ranges[path] = _Range(file, offset, file.end(offset))
        try:
            current.fill(into)
        except BaseException:
            current.close()
            del ranges[path]
            raise
        if current.position == current.end:
            current.close()
            del ranges[path]


class _Range:
    """A tensor's bytes as they come."""

    def __init__(self, file: RemoteFile, begin: int, end: int) -> None:
        self.file, self.position, self.end = file, begin, end
        self._context: Any = None
        self._pieces: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")

    def fill(self, into: memoryview) -> None:
        """The next bytes; a broken connection is taken up where it broke."""
        idle = 0
        while into:
            if not self._rest:
                piece = self._next()
                if piece is None:
                    idle += 1
                    if idle > ATTEMPTS:
                        message = (
                            f"the Hub stopped sending {self.file.name} at byte {self.position:,}, {ATTEMPTS} times"
                        )
                        hint = "check the connection, and run the same command again: finished shards are kept"
                        raise HubError(f"{self.file.repo}: {message}", hint)
                    time.sleep(min(LONGEST, 0.25 * 2**idle) if idle > 1 else 0)
                    continue
                idle, self._rest = 0, memoryview(piece)
            n = min(len(self._rest), len(into), self.end - self.position)
            into[:n] = self._rest[:n]
            into, self._rest = into[n:], self._rest[n:]
            self.position += n

    def _next(self) -> bytes | None:
        """Some bytes; None if the connection broke, or was none."""
        try:
            if self._context is None:
                self._context, response = self.file.open(self.position, self.end)
                self._pieces = response.iter_raw()
            piece = next(self._pieces, b"")
        except HubError:
            raise
        except Exception as error:
            if not unreachable(error):
                raise hub_error(error, self.file.repo, self.file.commit) from error
            piece = b""
        if not piece:
            self.close()
        return piece or None

    def close(self) -> None:
        """Let go of the connection."""
        context, self._context = self._context, None
        self._rest = memoryview(b"")
        if context is not None:
            with suppress(Exception):
                context.__exit__(None, None, None)


def remote_files(checkpoints: Mapping[str, Checkpoint]) -> dict[Path, RemoteFile]:
    """The weight files of a plan that are not here."""
    return {
        file.path: RemoteFile(checkpoint, file.path)
        for checkpoint in checkpoints.values()
        if checkpoint.remote is not None
        for file in checkpoint.files
    }
