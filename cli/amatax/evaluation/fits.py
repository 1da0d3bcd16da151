"""The fitted points of a sweep: fit-ratios at each alpha, done once and written down."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amatax.errors import AmataxError, DataError
from amatax.evaluation.journal import Journal
from amatax.evaluation.points import Wanted, with_ratios
from amatax.fitting.data import answers, check_data, data_files, holdout
from amatax.fitting.options import FitOptions, block_count
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
    for name, value in fit_facts(recipe, source, points, options, plan).items():
        journal.fact(name, value)
    if kinds:
        folder.mkdir(exist_ok=True)
        for name, (path, answered) in data_files(recipe, source, options).items():
            if not answered:  # once for all fits
                role = "rlhf" if name == "data" else "sft"
                made = answers(recipe, path, role, options, folder / "answers.yaml", watcher)
                options = replace(options, data=made) if name == "data" else replace(options, keep=made)
    for kind, missing in kinds.items():
        _fit(recipe, source, kind, missing, options, journal, folder, watcher)
    return with_fits(recipe, points, journal.fits)


def with_fits(recipe: Recipe, points: Sequence[Wanted], fits: Mapping[str, Mapping[str, Any]]) -> list[Wanted]:
    """The points with a recipe each, but for those whose fit is not known.

    Args:
        fits: as a journal has them.
    """
    found = []
    for point in points:
        if point.fitting is not None and point.name in fits:
            known = fits[point.name]
            made_of = with_ratios(recipe, Ratios.model_validate(known["ratios"]))
            record = {**recipe.record, "fit": known["record"]}
            point = point._replace(recipe=made_of.model_copy(update={"record": record}))
        found.append(point)
    return found


def fit_facts(
    recipe: Recipe, source: Path | None, points: Sequence[Wanted], options: FitOptions, plan: Plan
) -> dict[str, Any]:
    """What the fits depend on, beside the models and the recipe's `merge`; nothing where nothing is fitted."""
    kinds = {point.kind: point.fitting for point in points if point.fitting is not None}
    if not kinds:
        return {}
    files = data_files(recipe, source, options)
    facts: dict[str, Any] = {f"fit {name}": _checksum(path) for name, (path, _) in files.items()}
    facts["fit data's responses"] = "there" if files["data"][1] else "sampled"  # `fit.data`, or `fit.prompts`
    held = holdout(recipe, source, options)
    facts["fit holdout"] = _checksum(held) if isinstance(held, Path) else held
    for kind, fitting in kinds.items():
        # of one name are even blocks and as many that the recipe's ratios write out
        count = block_count(recipe, replace(options, blocks=fitting.blocks), plan)
        facts[f"fit blocks of {kind}"] = "as in the ratios" if count is None else count
    facts["fit seed"] = options.seed
    if any(fitting.tax_aware for fitting in kinds.values()):
        facts["fit keep weight"] = _weight(options)
    return facts


def _checksum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check the path and its permissions") from None


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
