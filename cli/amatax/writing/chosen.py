"""The model card's part on how a sweep chose the merge: its figures beside SFT's and RLHF's, what was asked, and the verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

SAME = 1e-6  # of the mean ratio: the recipe is still the one that was measured
HEADS = {"chosen": "this merge", "sft": "SFT", "rlhf": "RLHF", "uniform": "uniform averaging, same mean"}
ARROWS = {True: " ↑", False: " ↓"}
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")  # not parentheses: the Hub reads `\(` as mathematics


def chosen_section(record: Any, mean: float) -> list[str]:
    """Paragraphs of Markdown.

    Args:
        record: the recipe's `record.sweep`, which anybody may have edited; of one that is none of ours nothing is told.
        mean: of the ratios over the blocks. The figures of a merge at other ratios are not this model's.
    """
    try:
        if abs(float(record["alpha"]) - mean) > SAME:
            return []
        return _told(record)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def keeps_fit(record: Mapping[str, Any]) -> bool:
    """Whether a fit that the recipe records is still that of its ratios: only if the sweep chose the recipe as it was."""
    return record.get("chosen") == "recipe"


def _told(record: Mapping[str, Any]) -> list[str]:
    figures = {key: record["figures"][key] for key in HEADS if key in record["figures"]}
    every, holding = record["merges"]["measured"], record["merges"]["holding"]
    asked = []
    for one in record["requirements"]:
        bound = one["value"] - one["margin"][0]
        asked.append(
            f"- {plain(one['asked'])} {plain(one['verdict'])}: {_number(one['value'])}, asked was {_number(bound)}."
        )
    among = f"{int(holding)} of {int(every)} merges that hold what was asked" if asked else f"{int(every)} merges"
    rows = [f"| | {' | '.join(HEADS[key] for key in figures)} |", f"|---{'|---' * len(figures)}|"]
    for name in figures["chosen"]:
        said = record["measures"][name]
        cells = [_cell(figures[key].get(name)) for key in figures]
        kind = "" if said["kind"] == name else f", {plain(said['kind'])}"
        rows.append(f"| {plain(name)}{kind}{ARROWS.get(said['higher'], '')} | {' | '.join(cells)} |")
    found = [
        "## What it can do, and at what price",
        f"Chosen by a sweep ({plain(record['chosen'])}) among {among}, by {plain(record['rule'])}. The figures, with their standard "
        "errors, are of the half of the samples that did not choose.",
        "\n".join(rows),
    ]
    if asked:
        found.append("\n".join(asked))
    beside = [f"- Beside {HEADS[key]}: {told}." for key in HEADS if (told := _beside(record["compared"], key))]
    return [*found, *(["\n".join(beside)] if beside else [])]


def _beside(compared: Sequence[Mapping[str, Any]], other: str) -> str:
    """`better in reward; worse in kl`, by a paired bootstrap over samples."""
    of: dict[str, list[str]] = {}
    for row in compared:
        if row["with"] == other:
            of.setdefault(str(row["verdict"]), []).append(plain(row["measure"]))
    return "; ".join(f"{plain(verdict)} in {', '.join(names)}" for verdict, names in of.items())


def plain(text: Any) -> str:
    """Any text as Markdown that shows it, on one line: names come from whoever wrote the recipe."""
    one = " ".join(str(text).encode(errors="replace").decode().split())
    return SPECIAL.sub(r"\\\1", one.replace("&", "&amp;").replace("<", "&lt;"))


def _cell(figure: Any) -> str:
    if figure is None:
        return "–"
    value, error = figure
    return f"{_number(value)} ± {error:.2g}" if math.isfinite(value) and math.isfinite(error) else _number(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
