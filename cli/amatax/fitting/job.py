"""amatax fit-ratios: a recipe and data in, the same recipe with fitted ratios out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import AmataxError, DataError, Fault, OutputError, PlanError
from amatax.fitting.filling import fill_in
from amatax.fitting.identity import fingerprint
from amatax.fitting.libraries import import_libraries
from amatax.fitting.records import Record, read_records
from amatax.fitting.variables import choose_variables, tensor_groups
from amatax.planning.plan import Plan, make_plan
from amatax.planning.siblings import tokenizer_differences
from amatax.recipes.schema import Ratios, Recipe

if TYPE_CHECKING:
    from amatax.fitting.fit import Fit
    from amatax.fitting.samples import Sample

DEFAULT_ALPHA, DEFAULT_BLOCKS, DEFAULT_HOLDOUT = 0.4, 3, 0.2


@dataclass(frozen=True)
class Options:
    """What fit-ratios is asked for; None leaves it to the recipe's `fit`, then to the default.

    Attributes:
        data: JSONL of prompts and responses of the RLHF model.
        alphas: means that are held, one fit each.
        keep: JSONL of prompts with what SFT answers (`amatax distill --role sft` samples it): a tax-aware fit.
        max_kl: bounds of the mean KL(SFT || merged) on those, nats per response token; one fit each.
        keep_weight: or: that KL, times this, is added to the NLL.
        blocks: how many.
        groups: attention and MLP apart.
        free_head: the head's ratio is an unknown of its own.
        weigh_by_layers: the mean counts blocks by their layers.
        holdout: a share of the prompts, or a JSONL file.
        max_length: tokens of a sample.
        raw: no chat template.
        most_bad: the share of bad lines that are skipped.
        compute: dtype of the forward pass; float32 on a CPU, the checkpoint's on a GPU.
        batch_tokens: tokens of a batch.
        checkpointing: recompute activations in backward.
    """

    data: Path | None = None
    alphas: tuple[float, ...] = ()
    keep: Path | None = None
    max_kl: tuple[float, ...] = ()
    keep_weight: float | None = None
    blocks: int | None = None
    groups: bool = False
    free_head: bool = False
    weigh_by_layers: bool = False
    holdout: float | Path | None = None
    max_length: int | None = 2048
    raw: bool = False
    most_bad: float = 0.0
    seed: int = 0
    device: str = "auto"
    compute: str | None = None
    batch_tokens: int = 4096
    checkpointing: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False


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
    """What fit-ratios made: one fitted recipe for each alpha, and notes on the data."""

    fits: list[Fitted]
    notes: list[str] = field(default_factory=list)


def fit_job(
    recipe: Recipe,
    text: str,
    source: Path | None,
    output: Path,
    options: Options,
    *,
    start: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda n: None,
    wait: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> FitResult:
    """Fit the ratios of a recipe.

    Args:
        recipe: with or without ratios; their words (head, embeddings, norms, overrides) are kept.
        text: the recipe as written, "" if it came from Python.
        source: the recipe's file.
        output: the recipe to write; with several alphas `NAME-ALPHA.yaml` beside it.
        options: see Options.
        start, advance, wait, say: progress: samples of a pass, samples done, a moment to show it, what goes on.

    Raises:
        AmataxError: see amatax.errors.
    """
    alphas = options.alphas or (
        (recipe.fit.alpha,) if recipe.fit and recipe.fit.alpha is not None else (DEFAULT_ALPHA,)
    )
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise AmataxError(f"alpha is {alpha:g}", "it is the mean share of RLHF: a number from 0 to 1")
    cases = _cases(alphas, options)
    targets = _targets(output, [case.label for case in cases], overwrite=options.overwrite)
    data = _data_file(recipe, source, options)
    records, notes = read_records(data, responses=True, most_bad=options.most_bad)

    plan = make_plan(_with_some_ratios(recipe))
    variables = choose_variables(
        plan.ratios,
        plan.model,
        _block_count(recipe, options, plan),
        groups=options.groups,
        free_head=options.free_head,
        weigh_by_layers=options.weigh_by_layers,
    )
    group_of, rows = tensor_groups(plan, variables)
    for i, name in enumerate(variables.names):
        if not any(row[1 + i] for row in rows):
            raise AmataxError(
                f"no tensor follows the ratio of {name}", "the recipe's overrides fix them all: drop some"
            )
    fill_in(text, recipe, variables.ratios([0.5] * len(variables.names)), {}, source, targets[0])  # before the work

    say("loading both models")
    import_libraries()
    import torch

    from amatax.fitting.fit import Keep, fit
    from amatax.fitting.merged_model import load_merged_model
    from amatax.fitting.passes import Passes
    from amatax.streaming.stream import pick_device

    train, held, cut = _samples(recipe, source, plan, records, options)
    notes += cut
    kept: tuple[list[Sample], list[Sample]] = ([], [])
    if options.keep is not None:
        kept_records, more = read_records(options.keep, responses=True, most_bad=options.most_bad)
        *kept_parts, cut = _samples(
            recipe, source, plan, kept_records, replace(options, holdout=_share(recipe, options))
        )
        kept, notes = (kept_parts[0], kept_parts[1]), [*notes, *more, *cut]
    device = pick_device(options.device)
    compute = getattr(torch, options.compute) if options.compute else torch.float32 if device.type == "cpu" else None
    merged = load_merged_model(
        plan, group_of, rows, device=device, compute=compute, trust_remote_code=options.trust_remote_code
    )
    notes += merged.notes
    if options.checkpointing:
        merged.checkpoint_activations()
    head = {
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "plan": plan.identity,
        "models": {role: fingerprint(checkpoint) for role, checkpoint in plan.checkpoints.items()},
        "unknowns": variables.names,
        "rows": rows,
        "compute": str(merged.compute),
        "seed": options.seed,
        "samples": [len(train), len(held)],
        "tokens": hashlib.sha256(repr((train, held, kept)).encode()).hexdigest(),
        "keep": hashlib.sha256(options.keep.read_bytes()).hexdigest() if options.keep else None,
        "max_length": options.max_length,
        "raw": options.raw,
    }
    passes = Passes(targets[0].with_name(f"{targets[0].name}.unfinished.jsonl"), json.loads(json.dumps(head)))
    if passes.known:
        say(f"continuing: {passes.known} passes are known from the interrupted run")

    def went(samples: int) -> None:
        advance(samples)
        wait()

    done: list[Fitted] = []
    for case, target in zip(cases, targets, strict=True):
        found = fit(
            merged,
            variables,
            train,
            held,
            case.alpha,
            passes,
            keep=Keep(*kept, case.max_kl, options.keep_weight) if options.keep else None,
            seed=options.seed,
            begin=done[-1].fit.values if done else None,
            batch_tokens=options.batch_tokens,
            start=start,
            advance=went,
            say=partial(_say_for, say, case.label) if len(cases) > 1 else say,
        )
        done.append(Fitted(target, found, _record(found, data, head, options)))
    for fitted in done:
        filled = fill_in(text, recipe, fitted.fit.ratios, fitted.record, source, fitted.recipe)
        fresh = fitted.recipe.with_name(f".{fitted.recipe.name}.partial")
        fresh.write_text(filled, encoding="utf-8")
        fresh.replace(fitted.recipe)
    passes.remove()
    return FitResult(done, notes)


@dataclass(frozen=True)
class _Case:
    """One fit of several."""

    label: str
    alpha: float | None
    max_kl: float | None = None


def _cases(alphas: Sequence[float], options: Options) -> list[_Case]:
    """Every alpha; or, for tax-aware fits, every bound, with alpha free unless it was asked for.

    Raises:
        AmataxError: for wishes that do not go together.
    """
    if options.keep is None:
        if options.max_kl or options.keep_weight is not None:
            raise AmataxError("--max-kl and --keep-weight need --keep", "name the prompts whose answers must stay")
        return [_Case(f"{alpha:g}", alpha) for alpha in alphas]
    if bool(options.max_kl) == (options.keep_weight is not None):
        hint = "--max-kl bounds the divergence from SFT in nats per token; --keep-weight adds it to the likelihood"
        raise AmataxError("--keep needs --max-kl or --keep-weight, and one of them only", hint)
    if any(bound <= 0 for bound in options.max_kl) or (options.keep_weight or 1) <= 0:
        raise AmataxError("--max-kl and --keep-weight are positive", "0.02 nats per token, or a weight of 1, are usual")
    held: Sequence[float | None] = options.alphas or (None,)
    bounds: Sequence[float | None] = options.max_kl or (None,)
    return [
        _Case("-".join([*([f"{a:g}"] if a is not None else []), *([f"kl{b:g}"] if b is not None else [])]), a, b)
        for a in held
        for b in bounds
    ]


def _say_for(say: Callable[[str], None], label: str, what: str) -> None:
    say(f"{label}: {what}")


def _targets(output: Path, labels: list[str], *, overwrite: bool) -> list[Path]:
    targets = [output] if len(labels) == 1 else [output.with_name(f"{output.stem}-{x}{output.suffix}") for x in labels]
    for target in targets:
        if target.is_dir():
            raise OutputError(f"{target} is a folder", "name the recipe to write: -o fitted.yaml")
        if target.exists() and not overwrite:
            raise OutputError(f"{target} exists", "name another recipe with -o, or replace it with --overwrite")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"{output.resolve().parent}: no such folder", "make it first, or name another place with -o")
    return targets


def _data_file(recipe: Recipe, source: Path | None, options: Options) -> Path:
    if options.data is not None:
        return options.data
    if recipe.fit is not None and recipe.fit.data is not None:
        return _beside(source, recipe.fit.data)
    raise DataError(
        "there is no data to fit on",
        "sample some: `amatax distill RECIPE --prompts P.jsonl -o D.jsonl`, and pass --data D.jsonl or write fit.data",
    )


def _beside(source: Path | None, path: str) -> Path:
    """Data files are relative to the recipe's file."""
    return (source.resolve().parent if source else Path.cwd()) / Path(path).expanduser()


def _with_some_ratios(recipe: Recipe) -> Recipe:
    """A plan needs ratios; a recipe that leaves them to the fit has none yet."""
    if recipe.merge.ratios is not None:
        return recipe
    merge = recipe.merge.model_copy(update={"ratios": Ratios(blocks=[0.5])})
    filled = recipe.model_copy(update={"merge": merge})
    filled._origin = recipe._origin
    return filled


def _block_count(recipe: Recipe, options: Options, plan: Plan) -> int | None:
    """None keeps the recipe's own explicit layer ranges."""
    asked = options.blocks
    if asked is None and recipe.fit is not None and "blocks" in recipe.fit.model_fields_set:
        asked = recipe.fit.blocks
    if asked is None:
        own = recipe.merge.ratios is not None and (
            len(plan.ratios.blocks) > 1 or not isinstance(plan.ratios.blocks[0], int | float)
        )
        return None if own else min(DEFAULT_BLOCKS, plan.model.layers)
    if not 1 <= asked <= plan.model.layers:
        message = f"{asked} blocks for a model of {plan.model.layers} layers"
        where = "--blocks" if options.blocks is not None else recipe.where("fit", "blocks")
        raise PlanError([Fault(message, where, "a block has at least one layer")])
    return asked


def _same_tokens(checkpoints: dict[str, Checkpoint], records: list[Record], options: Options) -> list[str]:
    """SFT and RLHF must make the same tokens of a response; files that differ in other ways are noted."""
    from amatax.fitting.tokens import open_tokenizer

    sft, rlhf = checkpoints["sft"], checkpoints["rlhf"]
    differ = tokenizer_differences(sft, rlhf)
    if not all((c.folder / "tokenizer_config.json").is_file() for c in (sft, rlhf)) or not differ:
        return []
    both = [open_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code) for checkpoint in (sft, rlhf)]
    for record in records:
        one, other = (tokenizer(record.response, add_special_tokens=False).input_ids for tokenizer in both)
        if one != other:
            raise DataError(
                f"the tokenizers of sft and rlhf differ ({', '.join(differ)}): line {record.line} is other tokens for each",
                "a response has to be the same tokens for both; bring both models to one tokenizer",
            )
    return [f"tokenizer: {', '.join(differ)} differ between sft and rlhf, and make the same tokens of the data"]


def _samples(
    recipe: Recipe, source: Path | None, plan: Plan, records: list[Record], options: Options
) -> tuple[list[Sample], list[Sample], list[str]]:
    """(fitted, held out, notes)."""
    from amatax.fitting.samples import split_off, tokenize
    from amatax.fitting.tokens import open_tokenizer

    tokenizer = open_tokenizer(plan.checkpoints[recipe.output.tokenizer], trust_remote_code=options.trust_remote_code)
    samples, notes = tokenize(records, tokenizer, raw=options.raw, max_length=options.max_length)
    notes += _same_tokens(plan.checkpoints, records, options)
    wish: float | Path | str = _holdout(recipe, options)
    if isinstance(wish, str):
        wish = _beside(source, wish)
    if isinstance(wish, Path):
        others, more = read_records(wish, responses=True, most_bad=options.most_bad)
        held, cut = tokenize(others, tokenizer, raw=options.raw, max_length=options.max_length)
        held_prompts = {sample.prompt for sample in held}
        train = [sample for sample in samples if sample.prompt not in held_prompts]
        if not train:
            raise DataError(f"every prompt of the data is held out in {wish} too", "hold out other prompts")
        if shared := len(samples) - len(train):
            more.append(f"{shared} samples have a prompt that is held out, and are not fitted")
        return train, held, [*notes, *more, *cut]
    if not 0 <= wish < 1:
        raise DataError(f"a held-out share of {wish:g}", "give a share from 0 to below 1, or a JSONL file")
    train, held = split_off(samples, wish, options.seed)
    return train, held, notes


def _holdout(recipe: Recipe, options: Options) -> float | Path | str:
    if options.holdout is not None:
        return options.holdout
    return recipe.fit.holdout if recipe.fit is not None else DEFAULT_HOLDOUT


def _share(recipe: Recipe, options: Options) -> float:
    """Of the kept prompts, which have no held-out file of their own."""
    wish = _holdout(recipe, options)
    return wish if isinstance(wish, int | float) else DEFAULT_HOLDOUT


def _record(found: Fit, data: Path, head: dict[str, Any], options: Options) -> dict[str, Any]:
    """What the recipe says of how its ratios were found: no time, no path."""
    record = {
        "method": "maximum likelihood (AMA, arXiv 2309.06256, Eq. 8)",
        "alpha": found.alpha,
        "data": {
            "file": data.name,
            "sha256": head["data"],
            "fitted": head["samples"][0],
            "held_out": head["samples"][1],
        },
        "seed": options.seed,
        "optimiser": "SLSQP",
        "nll": {
            part: {"uniform": round(p.uniform, 6), "fitted": round(p.fitted, 6)}
            for part, p in (("fitted_part", found.fitted), ("held_out", found.held_out))
            if p is not None
        },
        "verdict": found.verdict,
    }
    if options.keep is not None:
        record |= {
            "keep": {"file": options.keep.name, "sha256": head["keep"], "max_kl": found.bound, "weight": found.weight},
            "tradeoff": [{**asdict(t), "nll": round(t.nll, 6), "kl": round(t.kl, 6)} for t in found.tradeoff],
        }
    return record


def fit_json(fitted: Fitted) -> dict[str, Any]:
    """One fit for scripts."""
    found = asdict(fitted.fit)
    found["ratios"] = fitted.fit.ratios.model_dump(mode="json")
    found["intervals"] = [None if i is None else [i.low, i.high] for i in fitted.fit.intervals]
    for part in ("fitted", "held_out"):
        if found[part] is not None:
            found[part]["gain"] = list(getattr(fitted.fit, part).gain)
    return {"recipe": str(fitted.recipe), **found}
