"""The ready recipes, in the wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

from amatax.errors import Fault, RecipeError


def gallery_folder() -> Path:
    """merge_recipes/, inside the installed package or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "merge_recipes"
    return installed if installed.is_dir() else package.parents[1] / "merge_recipes"


def gallery() -> dict[str, Path]:
    """Name -> file of every ready recipe."""
    return {path.stem: path for path in sorted(gallery_folder().glob("*.yaml"))}


def describe(path: Path) -> str:
    """The recipe's first comment line."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of a ready one.

    Raises:
        RecipeError: if there is neither.
    """
    path = Path(name)
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise RecipeError([Fault(f"cannot be read: {error.strerror}", name, "name a YAML file")]) from None
    if folder:
        raise RecipeError([Fault("a folder, not a recipe", name, "name the YAML file")])
    if there or path.suffix in (".yaml", ".yml") or "/" in name:
        return path
    if name in gallery():
        return gallery()[name]
    known = ", ".join(gallery())
    raise RecipeError([Fault("no such file, and no such ready recipe", name, f"ready ones: {known}")])
