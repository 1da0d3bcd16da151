"""Every sweep's results in one table, by way of merging, seed and ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amatax.errors import DataError
from amatax.evaluation.choice import part
from amatax.evaluation.files import read_results
from amatax.evaluation.measures import module_of
from amatax.evaluation.results import Half, Point, Results
from benchmarks.reproduce.grid import FIRST, Sweep

STANDING = ("sft", "rlhf")
Series = Mapping[int, Mapping[float, Point]]  # seed -> ratio -> point; what draws nothing has seed 0 alone


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        results: all points, the two models first.
        ways: by way of merging: `uniform`, `parts-input`, `fitted-3`, `ties 0.5`.
    """

    results: Results
    ways: Mapping[str, Series]

    def seeds(self, *ways: str) -> list[int]:
        """Those of the ways that draw something; [0] if none does."""
        drawn = [list(self.ways[way]) for way in ways if len(self.ways[way]) > 1]
        if any(some != drawn[0] for some in drawn):
            raise DataError(f"{', '.join(ways)}: not of the same seeds", "run them with the same")
        return drawn[0] if drawn else [0]

    def points(self, way: str, seed: int, ratios: Sequence[float] = ()) -> list[Point]:
        """A way's points of one seed, by ratio; those of a way that draws nothing are every seed's."""
        runs = self.ways[way]
        line = runs[seed] if seed in runs and len(runs) > 1 else next(iter(runs.values()))
        return [line[ratio] for ratio in (ratios or line)]

    def on(self, which: Half) -> Table:
        """The same table on one half of the samples."""
        half = part(self.results, which)
        found = {point.name: point for point in half.points}
        ways = {
            way: {seed: {r: found[p.name] for r, p in line.items()} for seed, line in runs.items()}
            for way, runs in self.ways.items()
        }
        return Table(half, ways)


def read_table(work: Path, sweeps: Sequence[Sweep]) -> Table:
    """One table of all sweeps.

    Raises:
        DataError: if a sweep is not finished, or measured otherwise than the first one.
    """
    measures: Mapping[str, Any] = {}
    models: dict[str, Point] = {}
    ways: dict[str, dict[int, dict[float, Point]]] = {}
    for sweep in sweeps:
        found = read_results(work / sweep.name, lambda kind: module_of(kind).value)
        measures = measures or found.measures
        if found.measures != measures:
            raise DataError(f"{sweep.name} was measured otherwise than {sweeps[0].name}", "sweep all of them anew")
        for point in found.points:
            if point.kind in STANDING:
                _check_same(models.setdefault(point.kind, point), point, sweep.name)
                continue
            if sweep == FIRST:
                continue
            ratio = float(point.name.rpartition(" ")[2])
            way, seed = sweep.label or point.kind, sweep.seed or 0
            name = f"{way} {ratio:g}" + (f" seed {seed}" if sweep.seed is not None else "")
            ways.setdefault(way, {}).setdefault(seed, {})[ratio] = replace(point, name=name, kind=way)
    ordered = {
        way: {seed: dict(sorted(line.items())) for seed, line in sorted(runs.items())} for way, runs in ways.items()
    }
    merges = [p for runs in ordered.values() for line in runs.values() for p in line.values()]
    return Table(Results(measures, (models["sft"], models["rlhf"], *merges)), ordered)


def _check_same(first: Point, again: Point, where: str) -> None:
    """The two models must be the same in every sweep."""
    for name, measured in first.measured.items():
        if not np.array_equal(measured.sums, again.measured[name].sums):
            raise DataError(f"{where}: {name} of {first.kind} is not what it was in another sweep", "find out why")
