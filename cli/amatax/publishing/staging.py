"""A finished folder as it is published: links to its files, and a card, recipe and record that name no local path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amatax.checkpoints.folder import open_folder
from amatax.errors import MissingExtraError, PlanError
from amatax.planning.destination import RECIPE, RECORD
from amatax.planning.names import anatomy
from amatax.planning.ratios import PlannedBlock, plan_blocks
from amatax.publishing.picture import draw_ratios
from amatax.recipes.loading import dump_recipe, load_recipe
from amatax.recipes.schema import Measure, Recipe, is_folder
from amatax.writing.card import card
from amatax.writing.side_files import write_json

NAMES = ("_name_or_path", "name_or_path", "tokenizer_name_or_path", "special_tokens_map_file", "tokenizer_file")
LARGE = 1 << 20  # bytes; a config is smaller
CARD, PICTURE = "README.md", "amatax_ratios.png"


@contextmanager
def staged(
    folder: Path,
    files: Sequence[str],
    record: Mapping[str, Any],
    repo: str,
    blocks: Sequence[PlannedBlock],
    loaded_by: str,
    front: Mapping[str, object],
    sections: Sequence[str],
) -> Iterator[Path]:
    """A temporary folder that is published as it stands.

    Args:
        folder: a finished merge.
        files: of it, all that is published.
        record: the merge's.
        repo: the Hub id.
        blocks: with their layers.
        loaded_by: the class in transformers that loads the model.
        front, sections: what the card says beside the recipe (see `card`).
    """
    recipe = load_recipe(folder / RECIPE)
    public = without_paths(recipe)
    with TemporaryDirectory(prefix="amatax-") as name:
        stage = Path(name)
        for file in files:
            if file not in (CARD, RECIPE, RECORD):
                (stage / file).parent.mkdir(parents=True, exist_ok=True)
                (stage / file).symlink_to((folder / file).resolve())
        cleaned = [file for file in files if file.endswith(".json") and _drop_paths(stage / file)]
        with suppress(MissingExtraError):  # the card's table has bars
            draw_ratios(blocks, stage / PICTURE)
        picture = PICTURE if (stage / PICTURE).exists() else ""
        ratios = recipe.merge.resolved_ratios()
        assert ratios is not None  # a merge has them
        front = {**front, **_results(repo, recipe.record.get("fit"))}
        text = card(public, ratios, blocks, loaded_by, name=repo, picture=picture, front=front, sections=sections)
        (stage / CARD).write_text(text, encoding="utf-8")
        (stage / RECIPE).write_text(_recipe_text(public, recipe), encoding="utf-8")
        changed = {
            file: hashlib.sha256((stage / file).read_bytes()).hexdigest()
            for file in (CARD, RECIPE, PICTURE, *cleaned)
            if (stage / file).exists()
        }
        models = public.models.references()
        said = {
            role: {**known, "ref": models.get(role, "")}
            | ({"adapter": models.get(f"{role} adapter", "")} if "adapter" in known else {})
            for role, known in record.get("models", {}).items()
        }
        write_json(
            stage / RECORD, {**record, "models": said, "files": dict(sorted({**record["files"], **changed}.items()))}
        )
        yield stage


def _results(repo: str, fit: Any) -> dict[str, object]:
    """What was measured on samples that no fit has seen, as the Hub's front matter has it."""
    held = fit.get("nll", {}).get("held_out") if isinstance(fit, dict) else None
    if not isinstance(held, dict):
        return {}
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    result = EvalResult(
        task_type="text-generation",
        dataset_type="distilled",
        dataset_name=f"responses of the RLHF model, {fit.get('data', {}).get('held_out')} held out",
        metric_type="nll",
        metric_name="NLL, nats per response token",
        metric_value=held.get("fitted"),
    )
    return {"model-index": eval_results_to_model_index(repo.rpartition("/")[2], [result])}


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe with `./ROLE` (or `./ROLE-adapter`) for every local folder, and without the output's path."""
    changes: dict[str, object] = {
        "models": recipe.models.renamed(lambda key, ref: f"./{key.replace(' ', '-')}" if is_folder(ref) else ref),
        "output": recipe.output.model_copy(update={"path": None}),
    }
    if recipe.fit is not None:
        named = {key: getattr(recipe.fit, key) for key in ("data", "prompts", "holdout")}
        files = {key: Path(value).name for key, value in named.items() if isinstance(value, str)}
        changes["fit"] = recipe.fit.model_copy(update=files)
    if recipe.measures:
        changes["measures"] = {name: _measure_without_paths(measure) for name, measure in recipe.measures.items()}
    return recipe.model_copy(update=changes)


def _measure_without_paths(measure: Measure) -> Measure:
    """The names of its files alone; a reward model's folder is `./NAME`."""
    changes = {"data": Path(measure.data).name} if measure.data else {}
    model = measure.options.get("model")
    if isinstance(model, str) and is_folder(model):
        changes["model"] = f"./{Path(model).name}"
    return measure.model_copy(update=changes)


def _drop_paths(file: Path) -> bool:
    """Take `_name_or_path` and its like out of a published JSON file, if it is a path of somebody's machine; whether it was."""
    try:
        data = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < LARGE else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(data, dict):
        return False
    kept = {
        key: value for key, value in data.items() if not (key in NAMES and isinstance(value, str) and is_path(value))
    }
    if len(kept) == len(data):
        return False
    file.unlink()  # a link: the model's own file stays as it is
    write_json(file, kept)
    return True


def is_path(text: str) -> bool:
    """Whether a model is named by where it lies on a machine."""
    return is_folder(text) or "\\" in text or text.startswith("file:") or text.count("/") > 1


def _recipe_text(public: Recipe, recipe: Recipe) -> str:
    lines = ["# What this model was merged from: `amatax merge THIS_FILE OUTPUT` makes the same weights again."]
    local = [role for role, ref in recipe.models.references().items() if is_folder(ref)]
    if local:
        lines.append(f"# {' and '.join(local)} came from local folders: to merge again, put them beside this file.")
    return "\n".join([*lines, dump_recipe(public)])


def merged_blocks(folder: Path, recipe: Recipe) -> tuple[list[PlannedBlock], str]:
    """The blocks with their layers, and the class that loads the model; from the merged model itself: the inputs may be gone."""
    merged = open_folder(folder, str(folder))
    ratios = recipe.merge.resolved_ratios()
    model = anatomy(merged.tensors, merged.config)
    blocks, faults = plan_blocks(recipe, ratios, model.layers) if ratios is not None else ([], [])
    if faults or ratios is None:
        raise PlanError(faults)
    return blocks, merged.loaded_by
