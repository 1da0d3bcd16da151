"""amatax recipes"""

from __future__ import annotations

import typer


def run(name: str = typer.Argument("", help="Show this recipe's text.")) -> None:
    """List the ready recipes, or show one. `amatax merge NAME FOLDER` runs one as it stands."""
    from amatax.recipes.gallery import describe, find_recipe, gallery

    if name:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    for stem, path in gallery().items():
        print(f"{stem:<14} {describe(path)}")
