"""distill and fit-ratios: responses of the RLHF model, and ratios from them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amatax.api.common import RecipeSource, Watcher, as_recipe
from amatax.errors import OutputError

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillResult
    from amatax.fitting.job import FitResult


def distill(
    recipe: RecipeSource,
    prompts: str | PathLike[str],
    output: str | PathLike[str],
    *,
    watcher: Watcher | None = None,
    **options: Any,
) -> DistillResult:
    """Sample the proxy set D_theta of AMA (arXiv 2309.06256, Eq. 7): responses of the recipe's RLHF model to prompts.

    An interrupted run continues from its journal beside the output; the same run again ends at once.

    Args:
        recipe: a Recipe, a YAML file, or a mapping; one of its models answers, with the tokenizer of `output.tokenizer`.
        prompts: JSONL of `prompt` or `messages`.
        output: the JSONL file to write.
        options: n, temperature, server, reward, top, ...: the fields of amatax.fitting.distilling.DistillOptions.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.fitting.distilling import DistillOptions, distil

    return distil(as_recipe(recipe), Path(prompts), Path(output), DistillOptions(**options), watcher or Watcher())


def fit_ratios(
    recipe: RecipeSource,
    output: str | PathLike[str],
    *,
    picture: str | PathLike[str] | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> FitResult:
    """Fill in a recipe's ratios by maximum likelihood on responses of the RLHF model (AMA, arXiv 2309.06256, Eq. 8).

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the recipe to write; with several alphas NAME-ALPHA.yaml beside it.
        picture: a PNG to draw; with several alphas NAME-ALPHA.png beside it, and if they are tax-aware, their front in NAME.png.
        options: data, alpha, keep, blocks, ...: the fields of amatax.fitting.options.FitOptions.

    Raises:
        AmataxError: see amatax.errors.
        TypeError: for an option that there is not.
    """
    from amatax.fitting.job import fit_job
    from amatax.fitting.options import FitOptions

    png = Path(picture) if picture is not None else None
    if png is not None and (png.suffix.lower() != ".png" or not png.resolve().parent.is_dir()):
        raise OutputError(f"{png}: no PNG file can be written there", "name a .png in a folder that exists")
    source = Path(recipe) if isinstance(recipe, str | PathLike) else None
    loaded = as_recipe(recipe)
    text = source.read_text(encoding="utf-8") if source else ""
    result = fit_job(loaded, text, source, Path(output), FitOptions(**options), watcher or Watcher())
    if png is not None:
        from amatax.fitting.picture import draw, draw_front

        for fitted in result.fits:
            which = fitted.recipe.stem.removeprefix(Path(output).stem) if len(result.fits) > 1 else ""
            draw(fitted.fit, png.with_name(f"{png.stem}{which}.png"))
        if len(result.fits) > 1 and result.fits[0].fit.tradeoff:
            draw_front([fitted.fit for fitted in result.fits], png)
    return result
