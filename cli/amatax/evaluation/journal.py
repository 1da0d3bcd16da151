"""The journal of a sweep: what it depends on, every fit, and every sample of every measure at every point.

One JSON object a line, appended as it is known, so that whatever stops a sweep, its next run goes on from there, and its results
can be written from this file alone. The file is locked against a second run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amatax.errors import OutputError
from amatax.evaluation.results import Measured
from amatax.fitting.journal import open_locked, write_all

FORMAT = 1
FIRST = {"sweep": FORMAT}


class Known:
    """What a journal says; to be read only.

    Args:
        path: the file, which need not be there.

    Attributes:
        facts: what the measured depends on, by name.
        fits: {"ratios": ..., "record": ...} by the point's name.
        measured: by (point, measure).
        whole: bytes of the file that can be used; a crash may have cut off the rest.

    Raises:
        OutputError: if the file is none of ours, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.facts: dict[str, Any] = {}
        self.fits: dict[str, dict[str, Any]] = {}
        self.measured: dict[tuple[str, str], Measured] = {}
        self._path = path
        self.whole = self._read()

    def check(self, name: str, value: Any) -> None:
        """Hold something that the measured depends on against what it was; what is not known yet is right.

        Raises:
            OutputError: if it is another one than in an earlier run.
        """
        value = json.loads(json.dumps(value))
        if self.facts.get(name, value) != value:
            raise OutputError(
                f"{self._path.parent} was measured with another {name} ({_difference(self.facts[name], value)})",
                "sweep into another folder with -o, or measure everything again with --overwrite",
            )

    def _read(self) -> int:
        """Take in the whole lines; their bytes."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}", "mend that, or choose another -o") from None
        whole = 0
        for i, line in enumerate(lines):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            begun = len(lines) == 1 and json.dumps(FIRST).encode().startswith(line)  # a crash cut off the first line
            if i == 0 and entry != FIRST and not begun:
                raise OutputError(f"{self._path} is no journal of this version's", "move it away, or --overwrite it")
            if not isinstance(entry, dict) or not self._take(entry):
                break
            whole += len(line)
        return whole

    def _take(self, entry: dict[str, Any]) -> bool:
        """Whether a line is one of ours; if so, it is known from now on."""
        try:
            if "fact" in entry:
                self.facts[entry["fact"]] = entry["is"]
            elif "fit" in entry:
                self.fits[entry["fit"]] = {"fit": entry["fit"], "ratios": entry["ratios"], "record": entry["record"]}
            elif "point" in entry:
                sums = np.array(entry["sums"], dtype=np.float64)
                sums = sums.reshape(len(entry["samples"]), -1)
                responses = None if entry["responses"] is None else tuple(entry["responses"])
                key = entry["point"], entry["measure"]
                self.measured[key] = Measured(sums, tuple(entry["samples"]), responses)
            else:
                return entry == FIRST
        except (KeyError, TypeError, ValueError):
            return False
        return True


class Journal(Known):
    """A journal to go on with; close it.

    Args:
        path: the file; it is made if it is not there.
        overwrite: begin anew.

    Raises:
        OutputError: if another run is at work there, or the file is none of ours.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        fd = open_locked(path)
        if fd is None:
            raise OutputError(f"{path}: another run is sweeping into this folder", "wait for it, or choose another -o")
        self._fd, self._overwrite = fd, overwrite
        try:
            super().__init__(path)
            os.ftruncate(fd, self.whole)  # what a crash cut off goes
            if not self.whole:
                self._write(FIRST)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def fact(self, name: str, value: Any) -> None:
        """Say what the measured depends on: now, or as it was said before.

        Raises:
            OutputError: if it is another one than in an earlier run.
        """
        self.check(name, value)
        if name not in self.facts:
            value = json.loads(json.dumps(value))
            self._write({"fact": name, "is": value})
            self.facts[name] = value

    def add_fit(self, point: str, ratios: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """A fit is done."""
        entry = {"fit": point, "ratios": dict(ratios), "record": dict(record)}
        self._write(entry)
        self.fits[point] = entry

    def add(self, point: str, measure: str, measured: Measured) -> None:
        """A measure at a point is done."""
        self._write(
            {
                "point": point,
                "measure": measure,
                "samples": list(measured.samples),
                "sums": measured.sums.tolist(),
                "responses": None if measured.responses is None else list(measured.responses),
            }
        )
        self.measured[point, measure] = measured

    def _write(self, entry: Mapping[str, Any]) -> None:
        write_all(self._fd, (json.dumps(entry) + "\n").encode())

    def _read(self) -> int:
        return 0 if self._overwrite else super()._read()


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first place in which two JSON values differ: `path: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                return _difference(one, other, f"{path}[{i}]")
    shown = [text if len(text := json.dumps(v)) <= 40 else f"{text[:37]}..." for v in (old, new)]
    return f"{path}: {' -> '.join(shown)}" if path else " -> ".join(shown)
