"""A progress bar on stderr once a job has taken a second: bytes or samples, rate, time left. Plain lines where there is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from amatax.api import Watcher
from amatax.commands.text import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_AFTER = 1.0  # seconds
LINE_EVERY = 15.0  # seconds, where there is no terminal


class ProgressWatcher(Watcher):
    """Shows what has been done; `with` it, so that the terminal is left tidy.

    Args:
        label: what goes on.
        quiet: show nothing.
        unit: what is counted; bytes by default.
    """

    def __init__(self, label: str, *, quiet: bool = False, unit: str = "") -> None:
        self.label, self.quiet, self.unit = label, quiet, unit
        self.total = self.read = 0
        self._lock = threading.Lock()
        self._screen = threading.RLock()  # a shard that is sent is said by another thread
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        self.total, self.read = total, 0
        self._started = self._last_line = time.monotonic()

    def advance(self, n: int) -> None:
        with self._lock:
            self.read += n

    def say(self, text: str) -> None:
        with self._screen:
            if self._bar is not None:  # drawn again when there is more to show
                self._bar.stop()
                self._bar = None
            if not self.quiet:
                print(text, file=sys.stderr)

    def wait(self) -> None:
        now = time.monotonic()
        if self.quiet or now - self._started < SHOW_AFTER:
            return
        if sys.stderr.isatty():
            with self._screen:
                self._draw()
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            rate = self.read / (now - self._started)
            left = (self.total - self.read) / rate if rate else 0
            done, speed = f"{human_bytes(self.read)} of {human_bytes(self.total)}", human_bytes(rate)
            if self.unit:
                done, speed = f"{self.read} of {self.total} {self.unit}", f"{rate:.3g}"
            self.say(f"{self.label}: {done}, {speed}/s, {left:.0f} s left")

    def _draw(self) -> None:
        if self._bar is None:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                *(
                    (progress.MofNCompleteColumn(), progress.TextColumn("{task.speed:.3g}/s"))
                    if self.unit
                    else (progress.DownloadColumn(), progress.TransferSpeedColumn())
                ),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self.label, total=self.total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=self.read, total=self.total)
