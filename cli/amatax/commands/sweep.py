"""amatax sweep"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.results_table import print_results
from amatax.commands.text import columns, human_bytes

if TYPE_CHECKING:
    from amatax.evaluation.predicting import Foretold
    from amatax.evaluation.sweeping import Preview, Swept


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a ready recipe (`amatax recipes`)."),
    output: str = typer.Option(..., "--output", "-o", help="The folder of the results.", show_default=False),
    alpha: str = typer.Option("0:1:0.1", help="Shares of RLHF: a range FIRST:LAST:STEP with both ends, or a list."),
    ways: str = typer.Option(
        "",
        "--with",
        help="How to merge: uniform (default), parts, fitted, tax-aware, recipe; several with commas.",
        show_default=False,
    ),
    blocks: list[int] = typer.Option(
        [],
        min=1,
        help="How many blocks of fits, grid and surrogate; several times for several.",
        show_default=False,
    ),
    grid: str = typer.Option(
        "", help="Also every combination of these ratios over the blocks: 0,0.5,1.", show_default=False
    ),
    surrogate: int | None = typer.Option(
        None,
        min=1,
        metavar="N",
        help="Measure N merges, fit a quadratic in the blocks' ratios, and measure the three that it predicts to be best; "
        "without --with nothing else.",
        show_default=False,
    ),
    fit_alpha: str = typer.Option(
        "", help="Means of the fits; default: --alpha's between 0 and 1.", show_default=False
    ),
    data: str = typer.Option(
        "", help="For fits: JSONL of prompts and responses of the RLHF model (`amatax distill`).", show_default=False
    ),
    keep: str = typer.Option(
        "", help="For tax-aware: JSONL of prompts with SFT's answers that must stay.", show_default=False
    ),
    keep_weight: float = typer.Option(
        0.0, help="For tax-aware: the weight of KL(SFT || merged) beside the NLL. Default: 1.", show_default=False
    ),
    reward: str = typer.Option("", help="A reward function of your own: FILE.py:function.", show_default=False),
    lm_eval_tasks: str = typer.Option(
        "",
        help="A folder of your own tasks (YAML) for `lm_eval` measures; the code that they name is run.",
        show_default=False,
    ),
    measures: str = typer.Option(
        "", help="A YAML file that says what is measured; the recipe's `measures` by default.", show_default=False
    ),
    require: list[str] = typer.Option(
        [], help='What the chosen merge must hold: "abilities >= 0.98*sft"; several times.', show_default=False
    ),
    allow_overlap: bool = typer.Option(
        False, "--allow-overlap", help="Measure prompts that are fitted, too; the report says how many."
    ),
    seed: int = typer.Option(0, help="Of the fits."),
    device: str = typer.Option("auto", help="Where to compute: cpu, cuda, cuda:N, or auto."),
    batch_size: int = typer.Option(16, help="Samples that are generated at once.", min=1),
    threads: int = typer.Option(0, help="That merge; default: the cores, up to 8.", min=0, show_default=False),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Let transformers run the checkpoint's own code."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Measure everything again."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be measured, and stop."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(False, "--json", help="Print the table, or the preview, as JSON."),
) -> None:
    """Measure many merges in memory, without writing a model: the reward-tax front. A rerun continues."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher
    from amatax.recipes.gallery import find_recipe

    wishes: dict[str, Any] = {
        "alpha": alpha,
        "ways": [way.strip() for way in ways.split(",") if way.strip()] or None,
        "blocks": blocks,
        "grid": grid,
        "surrogate": surrogate or 0,
        "fit_alpha": fit_alpha,
        "data": data or None,
        "keep": keep or None,
        "keep_weight": keep_weight or None,
        "reward": reward or None,
        "lm_eval_tasks": lm_eval_tasks or None,
        "measures": measures or None,
        "require": require,
        "allow_overlap": allow_overlap,
        "seed": seed,
        "device": device,
        "batch_size": batch_size,
        "threads": threads or None,
        "trust_remote_code": trust_remote_code,
        "overwrite": overwrite,
    }
    with ProgressWatcher("sweeping", quiet=quiet or as_json, unit="samples") as watcher:
        if dry_run:
            ahead = api.preview_sweep(find_recipe(recipe), output, watcher=watcher, **wishes)
        else:
            swept = api.sweep(find_recipe(recipe), output, watcher=watcher, **wishes)
    if dry_run:
        print(json.dumps(preview_json(ahead), indent=2) if as_json else "\n".join(preview_lines(ahead)))
    elif as_json:
        print(json.dumps(swept_json(swept, output), indent=2))
    elif not quiet:
        print_swept(swept)


def preview_lines(ahead: Preview) -> list[str]:
    """What will be done, for people."""
    kinds: dict[str, list[str]] = {}
    for point in ahead.points:
        kinds.setdefault(point.kind, []).append(point.name.removeprefix(point.kind).strip())
    rows = [[kind, str(len(names)), " ".join(names)] for kind, names in kinds.items()]
    lines = [f"{len(ahead.points)} points:", *(f"  {line}" for line in columns(rows, right=(1,)))]
    if ahead.proposals:
        lines.append(
            f"then the {ahead.proposals} that a quadratic in the ratios of the surrogate's merges predicts to be best"
        )
    if ahead.fits:
        lines.append(f"{len(ahead.fits)} fits first: {', '.join(ahead.fits)}")
    each = ", ".join(f"{name} {count}" for name, count in ahead.samples.items())
    done = len(ahead.points) * len(ahead.samples) - len(ahead.left)
    lines.append(f"samples  {ahead.samples_left} at most (of a point: {each})")
    if done:
        lines.append(f"known    {done} of {done + len(ahead.left)} results, which are not measured again: it continues")
    held, live, beside = ahead.memory
    more = f", SFT for kl {human_bytes(beside)}" if beside else ""
    lines.append(
        f"memory   {human_bytes(held + live + beside)} of weights: the models {human_bytes(held)}, "
        f"the merge {human_bytes(live)}{more}"
    )
    return [*lines, *(f"note: {note}" for note in ahead.notes)]


def preview_json(ahead: Preview) -> dict[str, Any]:
    """What will be done, for scripts."""
    return {
        "points": [{"name": p.name, "kind": p.kind, "alpha": p.alpha, "ratios": p.ratios} for p in ahead.points],
        "proposals": ahead.proposals,
        "fits": list(ahead.fits),
        "samples": dict(ahead.samples),
        "samples_left": ahead.samples_left,
        "left": [{"point": point, "measure": measure} for point, measure in ahead.left],
        "memory": {"models": ahead.memory.held, "merge": ahead.memory.live, "beside": ahead.memory.beside},
        "notes": list(ahead.notes),
    }


def print_swept(swept: Swept) -> None:
    """The table and the verdict, for people."""
    outcome = swept.outcome
    chosen = outcome.choice.point if outcome is not None and outcome.choice is not None else None
    print_results(swept.results, chosen.name if chosen is not None else "")
    if not swept.measured:
        print("everything was measured before: nothing was run")
    for note in swept.notes:
        print(f"note: {note}")
    if outcome is not None:
        print("\n".join(["", *outcome.verdict]))
    if swept.foretold is not None:
        print("\n".join(["", *foretold_lines(swept.foretold)]))
    if outcome is not None:
        print("\n".join(["", *map(str, outcome.files)]))


def foretold_lines(foretold: Foretold) -> list[str]:
    """What the surrogate predicted, and how well."""
    from amatax.evaluation.words import miss_figures, miss_heads

    lines = [foretold.note] if foretold.note else []
    if foretold.misses:
        rows = [miss_heads(foretold), *([m.measure, *miss_figures(m, foretold), m.words] for m in foretold.misses)]
        lines += [
            f"{foretold.headline()} How far it misses others (root of the mean square):",
            *(f"  {line}" for line in columns(rows, right=range(1, len(rows[0]) - 1))),
        ]
    return lines


def _number(value: Any) -> float | None:
    """For JSON, which has no NaN: a measure that no sample has."""
    number = float(value)
    return number if math.isfinite(number) else None


def swept_json(swept: Swept, output: str) -> dict[str, Any]:
    """The table for scripts."""
    from amatax.evaluation.fronts import constant
    from amatax.evaluation.predicting import foretold_json

    measures = swept.results.measures
    points = [
        {
            "name": p.name,
            "kind": p.kind,
            "alpha": p.alpha,
            "ratios": dict(p.ratios),
            "values": {name: _number(m.value(p.measured[name].sums.sum(0))) for name, m in measures.items()},
        }
        for p in swept.results.points
    ]
    outcome = swept.outcome
    choice = outcome.choice if outcome is not None else None
    return {
        "output": output,
        "measured": swept.measured,
        "points": points,
        "constant": list(constant(swept.results)),
        "chosen": choice.point.name if choice is not None and choice.point is not None else None,
        "surrogate": foretold_json(swept.results, swept.foretold) if swept.foretold is not None else None,
        "verdict": outcome.verdict if outcome is not None else [],
        "files": [str(file) for file in outcome.files] if outcome is not None else [],
        "notes": swept.notes,
    }
