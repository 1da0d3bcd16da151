"""Prompts that are fitted and measured: ratios that were fitted to a prompt look better on it than on others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from amatax.errors import DataError
from amatax.evaluation.data import read_data
from amatax.evaluation.declared import Declared
from amatax.evaluation.points import Wanted
from amatax.fitting.data import data_files
from amatax.fitting.options import FitOptions
from amatax.fitting.records import Record, read_records
from amatax.recipes.schema import Recipe

SHOWN = 3  # lines that a message names


def check_overlap(
    recipe: Recipe,
    source: Path | None,
    points: Sequence[Wanted],
    options: FitOptions,
    declared: Sequence[Declared],
    *,
    allowed: bool,
) -> list[str]:
    """Count the prompts that stand both in a file of the fits and in a measure's.

    Args:
        recipe, source, options: of the fits.
        points: of which some may be fitted.
        declared: the measures; those without a file of prompts have none to share.
        allowed: a sentence for each pair of files comes back, and nothing is raised.

    Raises:
        DataError: for prompts in both, with their count and first lines; for data that are missing or bad.
    """
    fits = [point.fitting for point in points if point.fitting is not None]
    with_prompts = [(one, one.data) for one in declared if one.data is not None and one.data.is_file()]
    if not fits or not with_prompts:
        return []
    files = data_files(recipe, source, options)
    if not any(fit.tax_aware for fit in fits):
        files.pop("keep", None)
    measured: dict[
        Path, tuple[list[str], dict[str, int]]
    ] = {}  # of each file the measures, and its prompts' first lines
    for one, file in with_prompts:
        names, lines = measured.setdefault(file.resolve(), ([], {}))
        names.append(one.name)
        for prompt, line in _first_lines(read_data(one).picked).items():
            lines.setdefault(prompt, line)
    found = []
    for name, (path, answered) in files.items():
        fitted = _first_lines(read_records(path, responses=answered, most_bad=options.most_bad)[0])
        for data, (names, lines) in measured.items():
            both = [f"line {line} is line {lines[prompt]}" for prompt, line in fitted.items() if prompt in lines]
            if both:
                shown = ", ".join(both[:SHOWN]) + (", ..." if len(both) > SHOWN else "")
                kept = "kept" if name == "keep" else "fitted"
                found.append(
                    f"{len(both)} of the {len(fitted)} prompts of {path} that are {kept} are measured by {', '.join(names)} "
                    f"in {data.name}, too ({shown})"
                )
    if found and not allowed:
        raise DataError(
            "\n  ".join(found), "fit or measure other prompts; with --allow-overlap they are measured all the same"
        )
    return found


def _first_lines(records: Sequence[Record]) -> dict[str, int]:
    """Where each conversation before a response stands first."""
    found: dict[str, int] = {}
    for record in records:
        found.setdefault(json.dumps(record.messages, sort_keys=True), record.line)
    return found
