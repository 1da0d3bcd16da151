"""The samples of a fit: from files, or distilled first; tokenized, and split by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import DataError
from amatax.fitting.options import FitOptions
from amatax.fitting.records import Record, read_records
from amatax.fitting.samples import Sample, split_off, tokenize
from amatax.fitting.sampling import Watching
from amatax.planning.plan import Plan
from amatax.planning.siblings import tokenizer_differences
from amatax.recipes.schema import Recipe, expand_home

DEFAULT_HOLDOUT = 0.2
TOKENIZERS = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
)  # a folder with one of these has a tokenizer


@dataclass
class FitData:
    """What a fit sees.

    Attributes:
        train, held: of the RLHF model's responses, the fitted ones and those that never are.
        keep, keep_held: the same of what SFT answers.
        files: the two data files by name, with their sha256: {"data": {...}, "keep": {...}}.
        notes: for the user.
    """

    train: list[Sample] = field(default_factory=list)
    held: list[Sample] = field(default_factory=list)
    keep: list[Sample] = field(default_factory=list)
    keep_held: list[Sample] = field(default_factory=list)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_data(recipe: Recipe, source: Path | None, options: FitOptions) -> None:
    """Read the data files for faults, before any model is.

    Raises:
        DataError: see amatax.fitting.records.read_records.
    """
    for path, responses in data_files(recipe, source, options).values():
        read_records(path, responses=responses, most_bad=options.most_bad)


def fit_data(
    recipe: Recipe, source: Path | None, plan: Plan, options: FitOptions, target: Path, watcher: Watching
) -> FitData:
    """Everything that is fitted or held out; prompts without responses are answered first.

    Args:
        recipe: may name the data (`fit.data`, `fit.prompts`, `fit.holdout`).
        source: its file.
        plan: of the merge.
        options: may name the data, and `keep`.
        target: the recipe that will be written; responses that are sampled here are kept beside it.
        watcher: of the distillation.

    Raises:
        DataError, CheckpointError
    """
    from amatax.fitting.tokens import open_tokenizer

    tokenizer = open_tokenizer(plan.checkpoints[recipe.output.tokenizer], trust_remote_code=options.trust_remote_code)
    found = FitData()
    for name, (path, answered) in data_files(recipe, source, options).items():
        if not answered:
            path = answers(recipe, path, "rlhf" if name == "data" else "sft", options, target, watcher)
        records, notes = read_records(path, responses=True, most_bad=options.most_bad)
        found.files[name] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        wish = holdout(recipe, source, options)
        with _named(path):
            samples, cut = tokenize(records, tokenizer, raw=options.raw, max_length=options.tokens)
            found.notes += [*notes, *cut]
            if name == "data":
                found.notes += _same_tokens(plan.checkpoints, records, options)
                found.train, found.held = _split(samples, wish, options, tokenizer, found.notes)
            else:  # a held-out file is the data's
                share = DEFAULT_HOLDOUT if isinstance(wish, Path) else wish
                found.keep, found.keep_held = _split(samples, share, options, tokenizer, found.notes)
    return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with data names their file: there may be two."""
    try:
        yield
    except DataError as error:
        message = error.message if path.name in error.message else f"{path.name}: {error.message}"
        raise DataError(message, error.hint) from None


def data_files(recipe: Recipe, source: Path | None, options: FitOptions) -> dict[str, tuple[Path, bool]]:
    """{"data": (file, whether it has the responses), "keep": ...}."""
    fit = recipe.fit
    if options.data is not None:
        found = {"data": (Path(options.data), True)}
    elif fit is not None and fit.data is not None:
        found = {"data": (_beside(source, fit.data), True)}
    elif fit is not None and fit.prompts is not None:
        found = {"data": (_beside(source, fit.prompts), False)}
    else:
        raise DataError(
            "there is no data to fit on",
            "sample some: `amatax distill RECIPE --prompts P.jsonl -o D.jsonl`, and pass --data D.jsonl; "
            "or write fit.data, or fit.prompts, into the recipe",
        )
    if options.keep is not None:
        keep = Path(options.keep)
        records, _ = read_records(keep, responses=False, most_bad=1.0)
        found["keep"] = (keep, any(record.response is not None for record in records))
    return found


def answers(recipe: Recipe, prompts: Path, role: str, options: FitOptions, target: Path, watcher: Watching) -> Path:
    """Responses of one of the models, sampled as `amatax distill` does by default; an earlier run's are taken up."""
    from amatax.fitting.distilling import DistillOptions, distil
    from amatax.fitting.ranks import wait_for_first
    from amatax.streaming.processes import rank_and_world

    output = target.with_name(f"{target.stem}.{'data' if role == 'rlhf' else 'keep'}.jsonl")
    watcher.say(f"{role} answers the prompts of {prompts.name}, into {output.name}")
    wishes = DistillOptions(
        seed=options.seed,
        raw=options.raw,
        role=role,
        device=options.device,
        most_bad=options.most_bad,
        trust_remote_code=options.trust_remote_code,
        overwrite=options.overwrite,
    )
    if rank_and_world()[0] == 0:
        for note in distil(recipe, prompts, output, wishes, watcher).notes:
            watcher.say(f"note: {note}")
    wait_for_first()
    return output


def holdout(recipe: Recipe, source: Path | None, options: FitOptions) -> float | Path:
    """The share of the prompts that is held out, or the file of those that are."""
    wish = options.holdout
    if wish is None and recipe.fit is not None:
        wish = recipe.fit.holdout
        if isinstance(wish, str):
            return _beside(source, wish)
    if wish is None:
        return DEFAULT_HOLDOUT
    return float(wish) if isinstance(wish, int | float) else Path(wish)


def _split(
    samples: list[Sample], wish: float | Path, options: FitOptions, tokenizer: Any, notes: list[str]
) -> tuple[list[Sample], list[Sample]]:
    """(fitted, held out)."""
    if isinstance(wish, float):
        if not 0 <= wish < 1:
            raise DataError(f"a held-out share of {wish:g}", "give a share from 0 to below 1, or a JSONL file")
        return split_off(samples, wish, options.seed)
    others, more = read_records(wish, responses=True, most_bad=options.most_bad)
    held, cut = tokenize(others, tokenizer, raw=options.raw, max_length=options.tokens)
    held_prompts = {sample.prompt for sample in held}
    train = [sample for sample in samples if sample.prompt not in held_prompts]
    if not train:
        raise DataError(f"every prompt of the data is held out in {wish} too", "hold out other prompts")
    notes += [*more, *cut]
    if shared := len(samples) - len(train):
        notes.append(f"{shared} samples have a prompt that is held out, and are not fitted")
    return train, held


def _same_tokens(checkpoints: dict[str, Checkpoint], records: list[Record], options: FitOptions) -> list[str]:
    """SFT and RLHF must make the same tokens of a response; files that differ in other ways are noted."""
    from amatax.fitting.tokens import open_tokenizer

    sft, rlhf = checkpoints["sft"], checkpoints["rlhf"]
    differ = tokenizer_differences(sft, rlhf)
    if not differ or not all(any((c.folder / name).is_file() for name in TOKENIZERS) for c in (sft, rlhf)):
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


def _beside(source: Path | None, path: str) -> Path:
    """Data files of a recipe are relative to its file."""
    return (source.resolve().parent if source else Path.cwd()) / expand_home(path)
