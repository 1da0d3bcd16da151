"""Every pass of a fit, written down as it ends: the same fit, started again, takes them from here and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from amatax.fitting.likelihood import Measured
from amatax.fitting.ranks import from_first, rank_and_world


class Passes:
    """Passes by what was measured.

    Args:
        path: the file; None keeps nothing. Of many processes the first one reads and writes it.
        head: everything that the passes depend on; a journal with another head is begun anew.
    """

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        lines = from_first(_lines(path))
        if lines and lines[0] == head:
            self._known = {line["key"]: line for line in lines[1:]}
        if rank_and_world()[0]:
            self.path = None
            return
        fresh = path.with_name(path.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in (head, *self._known.values()))
        fresh.replace(path)

    @property
    def known(self) -> int:
        """How many passes were written down."""
        return len(self._known)

    def measured(self, what: str, values: list[float], gradient: bool, measure: Callable[[], Measured]) -> Measured:
        """A pass from the journal, or made now and written down."""
        plain = " ".join([what, *map(repr, values)])
        key = f"gradient {plain}" if gradient else plain
        line = self._known.get(key) or self._known.get(f"gradient {plain}")  # which says all that a plain pass says
        if line is not None:
            slope = None if line["gradient"] is None else torch.tensor(line["gradient"], dtype=torch.float64)
            sums, tokens = (torch.tensor(line[k], dtype=torch.float64) for k in ("sums", "tokens"))
            return Measured(sums, tokens, slope)
        found = measure()
        slope_list = None if found.gradient is None else found.gradient.tolist()
        line = {"key": key, "sums": found.sums.tolist(), "tokens": found.tokens.tolist(), "gradient": slope_list}
        self._known[key] = line
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal up to the first that a crash cut off."""
    found: list[dict[str, Any]] = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(text))
    except (OSError, ValueError):
        pass
    return found
