"""amatax fit-ratios: a recipe and data in, the same recipe with fitted ratios out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.errors import AmataxError, OutputError
from amatax.fitting.data import FitData, check_data, fit_data
from amatax.fitting.filling import fill_in
from amatax.fitting.identity import fingerprint
from amatax.fitting.libraries import import_libraries
from amatax.fitting.options import Case, FitOptions, block_count, fit_cases, fit_targets
from amatax.fitting.sampling import Watching
from amatax.fitting.variables import Variables, choose_variables, tensor_groups
from amatax.planning.plan import Plan, make_plan
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Ratios, Recipe

if TYPE_CHECKING:
    import torch

    from amatax.fitting.merged_model import MergedModel
    from amatax.fitting.paper import Preset
    from amatax.fitting.passes import Passes
    from amatax.fitting.result import Fit, Part

SAME_DIVERGENCE = "the uniform average of the same divergence"  # where a bound decides alpha


@dataclass(frozen=True)
class Fitted:
    """One fitted recipe.

    Attributes:
        recipe: the file that was written.
        fit: what was found.
        record: what the recipe's `record.fit` says.
    """

    recipe: Path
    fit: Fit
    record: dict[str, Any]


@dataclass(frozen=True)
class FitResult:
    """What fit-ratios made.

    Attributes:
        recipes: the files, one for each alpha (or bound).
        fits: what was found, one for each; none if the same fit had been finished before.
        notes: on the data and the models.
    """

    recipes: list[Path]
    fits: list[Fitted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fit_job(
    recipe: Recipe, text: str, source: Path | None, output: Path, options: FitOptions, watcher: Watching
) -> FitResult:
    """Fit the ratios of a recipe.

    Args:
        recipe: with or without ratios; their words (head, embeddings, norms, overrides) are kept.
        text: the recipe as written, "" if it came from Python.
        source: the recipe's file.
        output: the recipe to write; with several alphas `NAME-ALPHA.yaml` beside it.
        options: see FitOptions.
        watcher: told the samples of a pass, those that are done, and what goes on.

    Raises:
        AmataxError: see amatax.errors.
    """
    cases = fit_cases(recipe, options)
    targets = fit_targets(output, cases)
    for target in targets:  # a finished one is looked at again when the data is known
        if target.exists() and not options.overwrite and _finished(target) is None:
            hint = "name another recipe with -o, or replace it with --overwrite"
            raise OutputError(f"{target} exists, and is no fitted recipe", hint)
    check_data(recipe, source, options)
    plan = make_plan(_with_some_ratios(recipe))
    variables = choose_variables(
        plan.ratios,
        plan.model,
        block_count(recipe, options, plan),
        groups=options.groups,
        free_head=options.free_head,
        weigh_by_layers=options.weigh_by_layers,
    )
    groups, rows = tensor_groups(plan, variables)
    for i, name in enumerate(variables.names):
        if not any(row[1 + i] for row in rows):
            raise AmataxError(
                f"no tensor follows the ratio of {name}", "the recipe's overrides fix them all: drop some"
            )
    fill_in(text, recipe, variables.ratios([0.5] * len(variables.names)), {}, source, targets[0])  # before the work

    import_libraries()
    from amatax.fitting.estimate import check_memory
    from amatax.fitting.merged_model import fitted_method
    from amatax.fitting.paper import Preset, check_preset
    from amatax.fitting.passes import Passes
    from amatax.fitting.ranks import joined
    from amatax.streaming.processes import rank_and_world

    fitted_method(recipe)
    preset = Preset(options.rate, options.eps) if options.preset else None
    if preset is not None:
        for case in cases:
            check_preset(preset, case.alpha or 0.0, len(variables.names))
    with joined():
        data = fit_data(recipe, source, plan, options, output, watcher)
        longest = max(len(sample.ids) for sample in [*data.train, *data.held, *data.keep, *data.keep_held])
        check_memory(plan, longest, options, divergence=bool(data.keep))
        head = _head(plan, variables, rows, data, cases, options)
        run = _run(head, cases, options)
        if _already(targets, run, options):
            return FitResult(targets)
        watcher.say("loading both models")
        merged = _merged_model(plan, groups, rows, options)
        with closing(Passes(_journal(targets[0]), head)) as passes:
            if _already(targets, run, options):  # by another run, meanwhile
                return FitResult(targets)
            found = _fits(merged, variables, data, cases, preset, passes, options, watcher)
            done = [
                Fitted(target, one, {**_record(one, data, options), "run": run, "ratios": _said(one.ratios)})
                for target, one in zip(targets, found, strict=True)
            ]
            if rank_and_world()[0] == 0:
                for fitted in done:
                    filled = fill_in(text, recipe, fitted.fit.ratios, fitted.record, source, fitted.recipe)
                    fresh = fitted.recipe.with_name(f".{fitted.recipe.name}.partial")
                    fresh.write_text(filled, encoding="utf-8")
                    fresh.replace(fitted.recipe)
                _journal(targets[0]).unlink(missing_ok=True)
    return FitResult(targets, done, [*data.notes, *merged.notes])


def _fits(
    merged: MergedModel,
    variables: Variables,
    data: FitData,
    cases: Sequence[Case],
    preset: Preset | None,
    passes: Passes,
    options: FitOptions,
    watcher: Watching,
) -> list[Fit]:
    """Every case, each begun where the one before it ended."""
    from amatax.fitting.fit import fit
    from amatax.fitting.problem import Keep

    if passes.known:
        watcher.say(f"continuing: {passes.known} passes are known from the interrupted run")
    found: list[Fit] = []
    for case in cases:
        if len(cases) > 1:
            watcher.say(f"fit {case.label}, {len(found) + 1} of {len(cases)}")
        found.append(
            fit(
                merged,
                variables,
                data.train,
                data.held,
                case.alpha,
                passes,
                keep=Keep(data.keep, data.keep_held, case.max_kl, options.keep_weight) if options.keep else None,
                seed=options.seed,
                begin=found[-1].descent if found else None,
                preset=preset,
                regulariser=options.regulariser,
                batch_tokens=options.batch_tokens,
                watcher=watcher,
            )
        )
    return found


def _journal(target: Path) -> Path:
    return target.with_name(f"{target.name}.unfinished.jsonl")


def _with_some_ratios(recipe: Recipe) -> Recipe:
    """A plan needs ratios; a recipe that leaves them to the fit has none yet."""
    if recipe.merge.ratios is not None:
        return recipe
    merge = recipe.merge.model_copy(update={"ratios": Ratios(blocks=[0.5])})
    filled = recipe.model_copy(update={"merge": merge})
    filled._origin = recipe._origin
    return filled


def _merged_model(
    plan: Plan, groups: dict[str, int], rows: list[tuple[float, ...]], options: FitOptions
) -> MergedModel:
    from amatax.fitting.merged_model import load_merged_model
    from amatax.streaming.processes import own_device, rank_and_world
    from amatax.streaming.stream import pick_device

    if options.shard and rank_and_world()[1] == 1:
        raise AmataxError("--shard needs several processes", "torchrun --nproc-per-node 2 -m amatax fit-ratios ...")
    device = pick_device(own_device(options.device))
    merged = load_merged_model(
        plan,
        groups,
        rows,
        device=device,
        compute=_compute(options),
        sharded=options.shard,
        trust_remote_code=options.trust_remote_code,
    )
    if options.checkpointing:
        merged.checkpoint_activations()
    return merged


def _head(
    plan: Plan,
    variables: Variables,
    rows: list[tuple[float, ...]],
    data: FitData,
    cases: Sequence[Case],
    options: FitOptions,
) -> dict[str, Any]:
    """Everything that a pass depends on, as JSON has it; at a held mean its gradient depends on the shares in that, too."""
    samples = repr((data.train, data.held, data.keep, data.keep_held))
    head = {
        "plan": plan.identity,
        "models": {role: fingerprint(checkpoint) for role, checkpoint in plan.checkpoints.items()},
        "unknowns": variables.names,
        "rows": rows,
        "shares": [str(share) for share in variables.shares],
        "held": cases[0].alpha is not None,
        "compute": str(_compute(options)),
        "seed": options.seed,
        "samples": hashlib.sha256(samples.encode()).hexdigest(),
    }
    return dict(json.loads(json.dumps(head)))


def _run(head: dict[str, Any], cases: Sequence[Case], options: FitOptions) -> str:
    """Tells one run from another: everything that the fitted ratios depend on."""
    wishes = (head, cases, options.keep_weight, options.preset, options.rate, options.eps, options.regulariser)
    return hashlib.sha256(repr(wishes).encode()).hexdigest()


def _already(targets: Sequence[Path], run: str, options: FitOptions) -> bool:
    """Whether every recipe is there, from this very fit.

    Raises:
        OutputError: for one from another fit, or changed since.
    """
    there = [target for target in targets if target.exists()]
    if options.overwrite or not there:
        return False
    for target in there:
        if _finished(target) != run:
            hint = "name another recipe with -o, or replace it with --overwrite"
            raise OutputError(f"{target} exists, from another fit or changed since", hint)
    return len(there) == len(targets)


def _finished(target: Path) -> str | None:
    """The run that wrote a recipe; "" if its ratios were changed since."""
    try:
        recipe = load_recipe(target)
    except (AmataxError, OSError):
        return None
    fit, ratios = recipe.record.get("fit"), recipe.merge.resolved_ratios()
    if not isinstance(fit, dict) or "run" not in fit:
        return None
    return str(fit["run"]) if ratios is not None and fit.get("ratios") == _said(ratios) else ""


def _said(ratios: Ratios) -> str:
    return hashlib.sha256(repr(ratios.model_dump(mode="json")).encode()).hexdigest()


def _compute(options: FitOptions) -> torch.dtype | None:
    """The dtype of the forward pass; None: the checkpoint's."""
    import torch

    from amatax.streaming.processes import own_device
    from amatax.streaming.stream import pick_device

    if options.compute:
        return getattr(torch, options.compute)
    return torch.float32 if pick_device(own_device(options.device)).type == "cpu" else None


def _record(found: Fit, data: FitData, options: FitOptions) -> dict[str, Any]:
    """What the recipe says of how its ratios were found: no time, no path."""
    parts = {"fitted_part": found.fitted, "held_out": found.held_out}
    kept = {"fitted_part": found.kept, "held_out": found.kept_held_out}
    record = {
        "method": "maximum likelihood (AMA, arXiv 2309.06256, Eq. 8)",
        "alpha": found.alpha,
        "data": {**data.files["data"], "fitted": len(data.train), "held_out": len(data.held)},
        "seed": options.seed,
        "optimiser": _optimiser(options),
        "intervals": {
            name: None if known is None else [round(known.low, 6), round(known.high, 6)]
            for name, known in zip(found.names, found.intervals, strict=True)
        },
        "nll": {name: _recorded(part) for name, part in parts.items() if part is not None},
        "verdict": found.verdict,
    }
    if found.found_alpha:
        record["compared_with"] = SAME_DIVERGENCE
    if options.regulariser:
        record["regulariser"] = options.regulariser
    if "keep" in data.files:
        record |= {
            "keep": {**data.files["keep"], "max_kl": found.bound, "weight": found.weight},
            "kl": {name: _recorded(part) for name, part in kept.items() if part is not None},
            "tradeoff": [{**asdict(t), "nll": round(t.nll, 6), "kl": round(t.kl, 6)} for t in found.tradeoff],
        }
    return record


def _optimiser(options: FitOptions) -> str:
    if options.preset:
        return f"Adam, rate {options.rate:g}, eps {options.eps:g} (Table 3)"
    return "SLSQP" if options.max_kl else "SLSQP on a corrected model of few samples"


def _recorded(part: Part) -> dict[str, Any]:
    gain = [round(number, 6) for number in part.gain]
    return {"uniform": round(part.uniform, 6), "fitted": round(part.fitted, 6), "gain": gain}


def fit_json(fitted: Fitted) -> dict[str, Any]:
    """One fit for scripts."""
    found = asdict(fitted.fit)
    found["path"] = found.pop("descent")["path"]
    found["ratios"] = fitted.fit.ratios.model_dump(mode="json")
    found["intervals"] = [None if i is None else [i.low, i.high] for i in fitted.fit.intervals]
    if fitted.fit.alpha_interval is not None:
        found["alpha_interval"] = list(fitted.fit.alpha_interval[1:])
    for part in ("fitted", "held_out", "kept", "kept_held_out"):
        if found[part] is not None:
            found[part]["gain"] = list(getattr(fitted.fit, part).gain)
    return {"recipe": str(fitted.recipe), **found}
