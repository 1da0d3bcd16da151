"""amatax evaluate"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.text import columns

if TYPE_CHECKING:
    from amatax.evaluation.results import Measure, Measured, Results

ARROWS = {True: "↑", False: "↓", None: ""}


def run(
    models: list[str] = typer.Argument(help="Recipes, model folders or Hub ids.", show_default=False),
    measures: str = typer.Option(
        "", help="A YAML file that says what is measured; the recipe's `measures` by default.", show_default=False
    ),
    sft: str = typer.Option("", help="The model that `kl` is against; the recipe's by default.", show_default=False),
    reward: str = typer.Option(
        "", help="FILE.py:function that scores (prompt, response); the file is run.", show_default=False
    ),
    lm_eval_tasks: str = typer.Option(
        "",
        help="A folder of your own tasks (YAML) for `lm_eval` measures; the code that they name is run.",
        show_default=False,
    ),
    output: str = typer.Option(
        "", "--output", "-o", help="A JSONL file to write: every sample's score and answer.", show_default=False
    ),
    batch_size: int = typer.Option(16, help="Answers that are generated at a time.", min=1),
    device: str = typer.Option("auto", help="Where to compute: cpu, cuda, cuda:N, or auto."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run the checkpoints' own code."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show no progress."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure models: the table of a recipe's (or a file's) measures, with standard errors."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher

    if quiet or as_json:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with ProgressWatcher("measuring", quiet=quiet or as_json, unit="samples") as watcher:
        found = api.evaluate(
            models,
            measures=measures or None,
            sft=sft or None,
            reward=reward or None,
            lm_eval_tasks=lm_eval_tasks or None,
            output=output or None,
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
            watcher=watcher,
        )
    if as_json:
        print(json.dumps(results_json(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(results_lines(found)))


def results_lines(found: Results) -> list[str]:
    """The table for people: ± is one standard error; arrows say which way is better."""
    head = ["", *(f"{name} {ARROWS[measure.higher]}".rstrip() for name, measure in found.measures.items())]
    rows = [head]
    for point in found.points:
        cells = [_cell(*_value_and_error(found.measures[name], m)) for name, m in point.measured.items()]
        rows.append([point.name, *cells])
    samples = ", ".join(f"{name} {len(m.samples)}" for name, m in found.points[0].measured.items())
    return [*columns(rows, right=range(1, len(head))), f"± is one standard error; samples: {samples}"]


def results_json(found: Results) -> dict[str, Any]:
    """The table for scripts."""
    measures = {
        name: {"kind": measure.kind, "higher": measure.higher, "settings": dict(measure.settings)}
        for name, measure in found.measures.items()
    }
    points: list[dict[str, Any]] = []
    for point in found.points:
        measured = {}
        for name, m in point.measured.items():
            value, error = (
                number if math.isfinite(number) else None for number in _value_and_error(found.measures[name], m)
            )
            measured[name] = {"value": value, "error": error, "samples": len(m.samples)}
        points.append({"name": point.name, "kind": point.kind, "measured": measured})
    return {"measures": measures, "points": points}


def _value_and_error(measure: Measure, measured: Measured) -> tuple[float, float]:
    from amatax.evaluation.statistics import standard_error, value_of

    return value_of(measure, measured), standard_error(measure, measured)


def _cell(value: float, error: float) -> str:
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f} ±{error:.{digits}f}" if math.isfinite(error) else f"{value:.{digits}f}"
