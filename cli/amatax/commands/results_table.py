"""The table of measures in a terminal; plain lines where the output is not one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from amatax.commands.text import columns

if TYPE_CHECKING:
    from amatax.evaluation.results import Results


def print_results(results: Results, chosen: str = "") -> None:
    """Points down, measures across, each value with its standard error; `*` is on a front, `>` was chosen."""
    rows = result_rows(results, chosen)
    if not sys.stdout.isatty():
        print("\n".join(columns(rows, right=range(2, len(rows[0])))))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(rows[0]):
        table.add_column(Text(head), justify="right" if i > 1 else "left", no_wrap=i < 2)
    for row in rows[1:]:
        table.add_row(*map(Text, row), style="bold green" if row[0] == ">" else "" if row[0] else "dim")
    Console().print(table)


def result_rows(results: Results, chosen: str = "") -> list[list[str]]:
    """The cells, the heads first."""
    from amatax.evaluation.fronts import front, pairs
    from amatax.evaluation.series import digits_of, number
    from amatax.evaluation.statistics import standard_error, value_of

    both = {"sft", "rlhf"} <= {point.kind for point in results.points}
    best = {point.name for pair in pairs(results) for point in front(results, pair)} if both else set()
    arrows = {True: " ↑", False: " ↓", None: ""}
    rows = [["", "point", "alpha", *(f"{name}{arrows[m.higher]}" for name, m in results.measures.items())]]
    digits = {name: digits_of(results, name) for name in results.measures}
    for point in results.points:
        mark = ">" if point.name == chosen else "*" if point.name in best else ""
        row = [mark, point.name, "" if point.alpha is None else f"{point.alpha:.4g}"]
        for name, measure in results.measures.items():
            if (measured := point.measured.get(name)) is None:
                row.append("")
                continue
            value, error = value_of(measure, measured), standard_error(measure, measured)
            row.append(f"{number(value, digits[name])} ± {number(error, digits[name])}")
        rows.append(row)
    return rows
