"""import: a mergekit configuration becomes a recipe."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import AmataxError, Fault, OutputError, RecipeError
from amatax.planning.names import anatomy
from amatax.recipes.mergekit import Imported, Known, Mergekit, Tensor, local_models, parse_mergekit, to_recipe


def import_mergekit(
    source: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    sft: str | None = None,
    rlhf: str | None = None,
    layers: int | None = None,
    overwrite: bool = False,
) -> Imported:
    """Turn a mergekit configuration into a recipe for the same merge, and say where the two programs differ.

    Of models that are folders here headers and config are read: names of tensors and the number of layers. Nothing is downloaded.

    Args:
        source: the YAML file of mergekit-yaml.
        output: the recipe to write; without it nothing is written, and folders are relative to the working directory.
        sft, rlhf: which models, as the configuration names them; otherwise the first is SFT and the second RLHF.
        layers: how many the models have, where gradients need it and no model is here.
        overwrite: replace the file at `output`.

    Raises:
        RecipeError: with everything that no recipe can say, and why.
        OutputError: if the recipe cannot be written.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Fault("no such file", str(path), "name mergekit's YAML file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Fault(f"cannot be read as text: {error}", str(path), "name mergekit's YAML file")]) from None
    target = Path(output) if output is not None else Path("recipe.yaml")
    if output is not None and target.exists() and not overwrite:
        raise OutputError(f"{target} is there already", "name another file, or --overwrite it")
    config = parse_mergekit(text, str(path))
    imported = to_recipe(config, _known(config, layers), target, sft=sft, rlhf=rlhf)
    if output is not None:
        try:
            fresh = target.with_name(f".{target.name}.unfinished")
            fresh.write_text(imported.text, encoding="utf-8")
            fresh.replace(target)
        except OSError as error:
            raise OutputError(
                f"{target} cannot be written: {error.strerror}", "name a file in a folder that exists"
            ) from None
    return imported


def _known(config: Mergekit, layers: int | None) -> Known:
    """What the first model that is here says of all of them: they are siblings."""
    for folder in local_models(config):
        try:
            found = open_checkpoint(str(Path(folder).absolute()))
        except AmataxError as error:
            config.notes.append(f"{folder}: its tensors' names are not known ({error.message})")
            continue
        model = anatomy(found.tensors, found.config)
        if not model.layers:
            config.notes.append(f"{folder}: no transformer layers found")
            continue
        if layers is not None and layers != model.layers:
            raise RecipeError([Fault(f"--layers {layers}: {folder} has {model.layers}", "", "leave it out")])
        tensors = {name: Tensor(place.layer, place.kind) for name, place in model.places.items()}
        return Known(tensors, model.layers, len(model.backbone))
    return Known(layers=layers)
