"""amatax import"""

from __future__ import annotations

import json
import sys

import typer


def run(
    config: str = typer.Argument(help="A configuration of mergekit-yaml.", metavar="MERGEKIT_YML"),
    output: str = typer.Option(
        "", "--output", "-o", help="The recipe to write; default: standard output.", show_default=False
    ),
    sft: str = typer.Option(
        "", help="The model before RLHF, as it is named there; default: the first.", show_default=False
    ),
    rlhf: str = typer.Option("", help="The model after RLHF; default: the second.", show_default=False),
    layers: int = typer.Option(
        0,
        help="How many layers the models have, if gradients need it and none is here.",
        min=0,
        max=10_000,
        show_default=False,
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the recipe at -o."),
    as_json: bool = typer.Option(False, "--json", help="Print the recipe and the notes as JSON."),
) -> None:
    """Turn a mergekit configuration into a recipe for the same merge, or say why none says that."""
    from amatax import api

    imported = api.import_mergekit(
        config, output or None, sft=sft or None, rlhf=rlhf or None, layers=layers or None, overwrite=overwrite
    )
    if as_json:
        import yaml

        found = {"recipe": yaml.safe_load(imported.text), "output": output or None, "notes": imported.notes}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for note in imported.notes:
        print(f"note: {note}", file=sys.stderr)
    if output:
        print(f"recipe: {output}\nnext:   amatax merge {output} OUTPUT")
    else:
        print(imported.text, end="")
