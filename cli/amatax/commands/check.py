"""amatax check"""

from __future__ import annotations

import json

import typer


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a ready recipe."),
    as_json: bool = typer.Option(False, "--json", help="Print the recipe as it was understood, as JSON."),
) -> None:
    """Check a recipe's text: keys, types, values. Opens no checkpoint; `merge --dry-run` does."""
    from amatax.recipes.gallery import find_recipe
    from amatax.recipes.loading import load_recipe

    loaded = load_recipe(find_recipe(recipe))
    if loaded.measures:
        from amatax.evaluation.declared import declared_measures
        from amatax.recipes.measures import wishes_of

        declared_measures(wishes_of(loaded))
    if as_json:
        print(json.dumps(loaded.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print(f"{recipe}: a valid recipe ({loaded.merge.method}); `amatax merge {recipe} --dry-run` plans it")
