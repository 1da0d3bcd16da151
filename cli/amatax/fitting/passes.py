"""Every pass of a fit, written down as it ends: the same fit, started again, takes them from here and goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from amatax.errors import OutputError
from amatax.fitting.journal import open_locked, write_all
from amatax.fitting.likelihood import Measured
from amatax.fitting.ranks import from_first
from amatax.streaming.processes import rank_and_world

OURS = {"key", "sums", "tokens", "gradient"}


class Passes:
    """Passes by what was measured; close it.

    Args:
        path: the file, locked against another run (the lock dies with the process); None keeps nothing. Of many processes the
            first one reads and writes it.
        head: everything that the passes depend on; a journal with another head is begun anew.

    Attributes:
        asked: what this run has asked until now, by part, then by model ("sft", "rlhf") or ratios; a continued run begins with none.

    Raises:
        OutputError: if another run is at work there.
    """

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self.asked: dict[str, dict[str | tuple[float, ...], Measured]] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._fd: int | None = None
        if path is None:
            return
        lines: list[tuple[dict[str, Any], int]] = []
        if rank_and_world()[0] == 0:
            self._fd = open_locked(path)
            if self._fd is None:
                hint = "wait for it and run the same command again, or choose another recipe with -o"
                recipe = path.name.removesuffix(".unfinished.jsonl")
                raise OutputError(f"{recipe}: another run is fitting into this recipe", hint)
            lines = _lines(path)
            if not lines or lines[0][0] != head:
                lines = []
                os.ftruncate(self._fd, 0)
                self._write(head)
            else:
                os.ftruncate(self._fd, lines[-1][1])  # what a crash cut off goes
        self._known = {line["key"]: line for line, _ in from_first(lines)[1:]}

    def close(self) -> None:
        """Let go of the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def known(self) -> int:
        """How many passes were written down."""
        return len(self._known)

    def measured(
        self, part: str, where: list[float] | str, gradient: bool, measure: Callable[[], Measured]
    ) -> Measured:
        """A pass over a part at some ratios or at a model, from the journal, or made now and written down."""
        place = where if isinstance(where, str) else " ".join(map(repr, where))
        plain = f"{part} at {place}"
        key = f"gradient {plain}" if gradient else plain
        line = self._known.get(key) or self._known.get(f"gradient {plain}")  # which says all that a plain pass says
        if line is None:
            found = measure()
            slope_list = None if found.gradient is None else found.gradient.tolist()
            line = {"key": key, "sums": found.sums.tolist(), "tokens": found.tokens.tolist(), "gradient": slope_list}
            self._known[key] = line
            self._write(line)
        slope = None if line["gradient"] is None else torch.tensor(line["gradient"], dtype=torch.float64)
        sums, tokens = (torch.tensor(line[k], dtype=torch.float64) for k in ("sums", "tokens"))
        asked, point = self.asked.setdefault(part, {}), where if isinstance(where, str) else tuple(where)
        if point not in asked or gradient:
            asked[point] = Measured(sums, tokens, slope)
        return asked[point]

    def _write(self, line: dict[str, Any]) -> None:
        if self._fd is not None:
            write_all(self._fd, (json.dumps(line) + "\n").encode())


def _lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """The lines of a journal and where each one ends, up to the first that a crash cut off or that is none of ours."""
    found: list[tuple[dict[str, Any], int]] = []
    end = 0
    for raw in path.read_bytes().splitlines(keepends=True):
        end += len(raw)
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not raw.endswith(b"\n") or not isinstance(line, dict) or (found and not line.keys() >= OURS):
            break
        found.append((line, end))
    return found
