"""The fitted points of a sweep: fit-ratios at each alpha, done once and written down."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amatax.errors import AmataxError
from amatax.evaluation.journal import Journal
from amatax.evaluation.points import Wanted, with_ratios
from amatax.fitting.data import answers, check_data, data_files
from amatax.fitting.options import FitOptions
from amatax.fitting.sampling import Watching
from amatax.planning.plan import Plan
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Ratios, Recipe

KEEP_WEIGHT = 1.0  # of the KL in a tax-aware fit


def check_fits(recipe: Recipe, source: Path | None, points: Sequence[Wanted], options: FitOptions, plan: Plan) -> None:
    """Find out before any work whether the fits can be made.

    Raises:
        AmataxError: for data that are missing or bad, or more blocks than layers.
    """
    fits = [point.fitting for point in points if point.fitting is not None]
    if not fits:
        return
    if any(fit.tax_aware for fit in fits) and options.keep is None:
        raise AmataxError(
            "--with tax-aware needs --keep", "name the prompts whose answers must stay, with SFT's answers"
        )
    for fit in fits:
        if fit.blocks is not None and not 1 <= fit.blocks <= plan.model.layers:
            raise AmataxError(
                f"{fit.blocks} blocks for a model of {plan.model.layers} layers", "name fewer with --blocks"
            )
    check_data(recipe, source, options)


def fit_points(
    recipe: Recipe,
    source: Path | None,
    points: Sequence[Wanted],
    options: FitOptions,
    plan: Plan,
    journal: Journal,
    folder: Path,
    watcher: Watching,
) -> list[Wanted]:
    """The points with a recipe each; those that are to be fitted are, unless the journal knows them.

    Args:
        source: the recipe's file.
        options: of the fits, but for alpha, blocks and keep, which the points say.
        plan: of some merge of the recipe's.
        folder: where the fitted recipes go.
    """
    kinds: dict[str, list[Wanted]] = {}
    for point in points:
        if point.fitting is not None and point.name not in journal.fits:
            kinds.setdefault(point.kind, []).append(point)
    if any(point.fitting is not None for point in points):
        files = data_files(recipe, source, options)
        for name, (path, _) in files.items():
            journal.fact(f"fit {name}", hashlib.sha256(path.read_bytes()).hexdigest())
        journal.fact("fit seed", options.seed)
        if any(point.fitting is not None and point.fitting.tax_aware for point in points):
            journal.fact("fit keep weight", _weight(options))
    if kinds:
        folder.mkdir(exist_ok=True)
        for name, (path, answered) in files.items():
            if not answered:  # once for all fits
                role = "rlhf" if name == "data" else "sft"
                made = answers(recipe, path, role, options, folder / "answers.yaml", watcher)
                options = replace(options, data=made) if name == "data" else replace(options, keep=made)
    for kind, missing in kinds.items():
        _fit(recipe, source, kind, missing, options, journal, folder, watcher)
    fitted = []
    for point in points:
        if point.fitting is not None:
            known = journal.fits[point.name]
            made_of = with_ratios(recipe, Ratios.model_validate(known["ratios"]))
            record = {**recipe.record, "fit": known["record"]}
            point = point._replace(recipe=made_of.model_copy(update={"record": record}))
        fitted.append(point)
    return fitted


def _fit(
    recipe: Recipe,
    source: Path | None,
    kind: str,
    points: Sequence[Wanted],
    options: FitOptions,
    journal: Journal,
    folder: Path,
    watcher: Watching,
) -> None:
    """Points of one kind in one go: each fit begins where the one before it ended, and an interrupted one continues."""
    from amatax.fitting.job import fit_job

    fits = [point.fitting for point in points if point.fitting is not None]
    alphas = [fit.alpha for fit in fits]
    wishes = replace(options, alpha=alphas, blocks=fits[0].blocks)
    if fits[0].tax_aware:
        wishes = replace(wishes, keep_weight=_weight(options))
    else:
        wishes = replace(wishes, keep=None, keep_weight=None)
    together = hashlib.sha256(repr(alphas).encode()).hexdigest()[:8]  # other alphas are another run of fits
    watcher.say(f"fitting {', '.join(point.name for point in points)}")
    text = source.read_text(encoding="utf-8") if source is not None else ""
    result = fit_job(recipe, text, source, folder / f"{kind}-{together}.yaml", wishes, watcher)
    for point, path in zip(points, result.recipes, strict=True):
        done = load_recipe(path)
        ratios = done.merge.resolved_ratios()
        assert ratios is not None
        journal.add_fit(point.name, ratios.model_dump(mode="json"), done.record["fit"])


def _weight(options: FitOptions) -> float:
    return KEEP_WEIGHT if options.keep_weight is None else options.keep_weight
