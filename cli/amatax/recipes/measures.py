"""A file of measures, `--measures FILE.yaml`: the mapping of a recipe's `measures:`, bare or under that key, or a whole recipe."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from amatax.errors import Fault, MeasureError, RecipeError
from amatax.recipes.loading import parse_recipe, read_yaml, schema_faults
from amatax.recipes.schema import Adapted, Measure, MeasureName, Origin, Recipe

HINT = "NAME: {measure: nll, data: FILE.jsonl}, one line for each; docs/measures.md lists the kinds"
KEY = "measures"


class Wishes(NamedTuple):
    """Measures as they are written.

    Attributes:
        measures: by name.
        origin: of the file, for messages; its keys are those of a recipe.
        folder: what data files are relative to.
        sft: of the recipe that they stand in.
    """

    measures: dict[str, Measure]
    origin: Origin
    folder: Path
    sft: str | Adapted | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    measures: dict[MeasureName, Measure]


def wishes_of(recipe: Recipe) -> Wishes:
    """A recipe's own measures; those of a mapping stand in the working directory."""
    file = recipe.where()
    folder = Path(file).resolve().parent if file else Path.cwd()
    return Wishes(dict(recipe.measures), recipe._origin, folder, recipe.models.sft)


def load_measures(path: Path) -> Wishes:
    """Read a file of measures.

    Raises:
        RecipeError: of a recipe, with all its faults.
        MeasureError: with all faults of the text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise MeasureError(
            [Fault(f"cannot be read as text: {cause}", str(path), "name a YAML file in UTF-8")]
        ) from None
    data, lines, faults = read_yaml(text, str(path), HINT)
    if faults:
        raise MeasureError(faults)
    if isinstance(data, dict) and "models" in data and "measure" not in (data["models"] or ()):
        recipe = parse_recipe(text, str(path), path.resolve().parent)
        if not recipe.measures:
            raise RecipeError([Fault(f"the recipe has no `{KEY}`", str(path), HINT)])
        return wishes_of(recipe)
    if not isinstance(data, dict) or not data:
        raise MeasureError([Fault("no mapping of measures", str(path), HINT)])
    if not (set(data) == {KEY} and isinstance(data[KEY], dict) and "measure" not in data[KEY]):
        data, lines = {KEY: data}, {(KEY,): 1} | {(KEY, *where): line for where, line in lines.items()}
    origin = Origin(str(path), lines)
    try:
        found = _File.model_validate(data)
    except ValidationError as error:
        raise MeasureError(schema_faults(error, origin, usual=HINT)) from None
    return Wishes(dict(found.measures), origin, path.resolve().parent)
