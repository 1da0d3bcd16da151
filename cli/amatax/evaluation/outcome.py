"""What a finished sweep leaves in its folder: results, pictures, the chosen recipe, and the page that tells it all."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from amatax.errors import DataError
from amatax.evaluation.choice import Choice, choice_record, choose
from amatax.evaluation.data import read_data
from amatax.evaluation.declared import Declared
from amatax.evaluation.files import write_results, write_whole
from amatax.evaluation.fronts import pairs
from amatax.evaluation.picture import draw_fronts
from amatax.evaluation.predicting import Foretold, foretold_json
from amatax.evaluation.report import write_report
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Results
from amatax.evaluation.words import headline, sameness, sentences
from amatax.fitting.filling import fill_in
from amatax.planning.plan import Plan
from amatax.recipes.loading import parse_recipe
from amatax.recipes.schema import Recipe

SURROGATE = "surrogate.json"
CHOSEN, REPORT, PICTURES = "chosen.yaml", "report.html", ("front.png", "front.svg")
RECORD = "sweep"  # the key of the recipe's record


class Outcome(NamedTuple):
    """What came out.

    Attributes:
        choice: None where nothing could be chosen.
        verdict: in words, the headline first.
        files: that were written.
    """

    choice: Choice | None
    verdict: list[str]
    files: list[Path]


def write_outcome(
    results: Results,
    recipes: Mapping[str, Recipe],
    folder: Path,
    plan: Plan,
    source: Path | None,
    declared: Sequence[Declared],
    requirements: Sequence[Requirement],
    device: str,
    foretold: Foretold | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Choose, and write everything.

    Args:
        results: of a sweep.
        recipes: of its points.
        folder: where.
        plan: of any of its merges.
        source: the recipe's file; without one no recipe is written.
        declared: the measures, whose data has the prompts.
        requirements: what the chosen merge must hold; with none it is the knee.
        device: where it was measured.
        foretold: what a surrogate predicted: dashed in the pictures.
        notes: what else a careful reader wants to know.

    Raises:
        MissingExtraError: without matplotlib.
        OutputError: if something cannot be written.
    """
    files = write_results(results, folder)
    choice, verdict = None, []
    try:
        choice = choose(results, requirements)
        verdict = [headline(choice), *sentences(results, choice)]
    except DataError as error:
        verdict = [f"Nothing was chosen: {error.message}."]
    chosen = choice.point if choice is not None else None
    if choice is not None and chosen is not None and source is not None:
        text = source.read_text(encoding="utf-8")
        target = folder / CHOSEN
        record = {**choice_record(results, choice), **({"notes": [*notes]} if notes else {})}
        ratios = recipes[chosen.name].merge.resolved_ratios()
        assert ratios is not None
        wanted = parse_recipe(text, str(source), source.resolve().parent)
        files.append(write_whole(target, fill_in(text, wanted, ratios, record, source, target, RECORD).encode()))
    else:
        (folder / CHOSEN).unlink(missing_ok=True)  # of an earlier run
    if foretold is not None:
        text = json.dumps(foretold_json(results, foretold), indent=1, ensure_ascii=False) + "\n"
        files.append(write_whole(folder / SURROGATE, text.encode(errors="replace")))
    else:
        (folder / SURROGATE).unlink(missing_ok=True)
    if pairs(results):
        files += draw_fronts(results, folder, chosen.name if chosen else "", foretold.drawn if foretold else None)
    else:
        verdict.append("there is no front to draw: no measure gains while another pays")
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)
    alike = sameness(results)
    page = write_report(
        results,
        folder / REPORT,
        choice=choice,
        title=source.stem if source is not None else "",
        about=_about(plan, source, device),
        prompts=_prompts(declared),
        notes=[*notes, *alike, *([] if choice is not None else verdict)],
        foretold=foretold,
    )
    return Outcome(choice, [*verdict, *alike], [*files, page])


def _about(plan: Plan, source: Path | None, device: str) -> dict[str, str]:
    """What was run on what."""
    merge = plan.recipe.merge
    models = {role: checkpoint.pinned for role, checkpoint in sorted(plan.checkpoints.items())}
    packages = {name: _version(name) for name in ("amatax", "torch", "transformers")}
    return {
        **({"recipe": source.name} if source is not None else {}),
        "method": " ".join([merge.method, *(f"{key}={value}" for key, value in merge.options.items())]),
        **models,
        "device": device,
        **packages,
        "Python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _prompts(declared: Sequence[Declared]) -> Mapping[str, Mapping[str, str]]:
    """Of measures with answers: what was asked, by sample."""
    return {
        one.name: {str(r.line): "\n\n".join(turn["content"] for turn in r.messages) for r in read_data(one).picked}
        for one in declared
        if "answer" in one.needs
    }
