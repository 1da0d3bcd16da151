"""Which merges a sweep measures: points by name, each an ordinary recipe, or a fit that will give one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import NamedTuple

from amatax.errors import AmataxError
from amatax.fitting.options import DEFAULT_BLOCKS
from amatax.planning.ratios import mean_ratio
from amatax.recipes.schema import Block, Merge, Ratios, Recipe

WAYS = ("uniform", "parts", "fitted", "tax-aware", "recipe")
PARTS = ("input", "middle", "output")
MOST = 10_000  # points of a sweep
DIGITS = 12  # before and behind the point: a ratio of more is a slip, and would be told with all of them


class Fitting(NamedTuple):
    """Ratios that are to be fitted.

    Attributes:
        blocks: how many; None: as the recipe says.
        alpha: the mean that is held.
        tax_aware: the kept prompts count.
    """

    blocks: int | None
    alpha: float
    tax_aware: bool


class Wanted(NamedTuple):
    """A point before it is measured.

    Attributes:
        name: unique, and the same in every run.
        kind: as evaluation.results.Point has it.
        recipe: of the merge; None until it is fitted.
        fitting: what gives the recipe.
    """

    name: str
    kind: str
    recipe: Recipe | None
    fitting: Fitting | None = None

    @property
    def alpha(self) -> float | None:
        """The mean of its ratios; None of a model."""
        if self.fitting is not None:
            return self.fitting.alpha
        ratios = self.recipe.merge.resolved_ratios() if self.recipe is not None else None
        return None if ratios is None or self.kind in ("sft", "rlhf") else mean_ratio(ratios)

    @property
    def ratios(self) -> dict[str, float]:
        """Its ratios by group: `blocks.0`, `blocks.1.attention`, `head`; empty of a model, and before a fit."""
        ratios = self.recipe.merge.resolved_ratios() if self.recipe is not None else None
        return {} if ratios is None or self.kind in ("sft", "rlhf") else by_group(ratios)


def wanted_points(
    recipe: Recipe,
    alphas: Sequence[Decimal],
    ways: Sequence[str],
    *,
    blocks: Sequence[int] = (),
    grid: Sequence[Decimal] = (),
    fit_alphas: Sequence[Decimal] = (),
) -> list[Wanted]:
    """Every point of a sweep: SFT and RLHF, then each way's at each alpha, then the grid.

    Args:
        recipe: whose method, options and words (head, embeddings, norms, other, overrides) all points but `parts` have.
        alphas: ratios: of `uniform` every block's, of `parts` the averaged part's.
        ways: of WAYS.
        blocks: into how many blocks fits and the grid split the layers; () as the recipe says.
        grid: every combination of these ratios over the blocks.
        fit_alphas: means of the fits; () those of `alphas` between 0 and 1.

    Raises:
        AmataxError: for ways that there are not, or ratios that are none.
    """
    for way in ways:
        if way not in WAYS:
            near = difflib.get_close_matches(way, WAYS, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(WAYS)}"
            raise AmataxError(f"--with {way}: no such way to merge", hint)
    _check_ratios(recipe, (*alphas, *grid))
    counts: dict[int, int | None] = {count: count for count in blocks} or {_usual_blocks(recipe): None}
    means = [a for a in (fit_alphas or alphas) if 0 < a < 1]  # at 0 and 1 there is one merge only: the uniform one
    if fit_alphas and len(means) < len(fit_alphas):
        raise AmataxError("--fit-alpha is a mean between 0 and 1", "at 0 and 1 every ratio is the same")
    points = [Wanted(role, role, with_model(recipe, role)) for role in ("sft", "rlhf")]
    for way in dict.fromkeys(ways):
        if way == "uniform":
            points += [Wanted(f"uniform {_said(a)}", way, _with_blocks(recipe, [a])) for a in alphas]
        elif way == "parts":
            points += [_part(recipe, i, a) for i in range(len(PARTS)) for a in alphas]
        elif way == "recipe":
            if recipe.merge.ratios is None:
                hint = "write `ratios:` under `merge`, or leave `recipe` out of --with"
                raise AmataxError("--with recipe: the recipe has no ratios of its own", hint)
            points.append(Wanted("recipe", "recipe", recipe))
        else:
            if not means:
                raise AmataxError(f"--with {way}: no alpha between 0 and 1", "name some with --alpha or --fit-alpha")
            for count, asked in counts.items():
                kind = f"{way}-{count}"
                points += [
                    Wanted(f"{kind} {_said(a)}", kind, None, Fitting(asked, float(a), way == "tax-aware"))
                    for a in means
                ]
    if grid:
        points += _grid(recipe, counts, grid)
    if len(points) > MOST:
        raise AmataxError(f"{len(points)} points", f"a sweep has {MOST} at most: fewer blocks, or fewer ratios")
    return list({point.name: point for point in points}.values())


def surrogate_point(recipe: Recipe, kind: str, ratios: Sequence[float]) -> Wanted:
    """A merge at these ratios of even blocks, under the recipe's other words; `kind` is `surrogate` or `proposed`."""
    values = [Decimal(f"{ratio:.4g}") for ratio in ratios]
    return Wanted(f"{kind} {','.join(map(_said, values))}", kind, _with_blocks(recipe, values))


def one_count(recipe: Recipe, counts: Sequence[int]) -> int:
    """Into how many blocks a surrogate splits the layers: the one of --blocks, else as the recipe says.

    Raises:
        AmataxError: for several.
    """
    several = list(dict.fromkeys(counts)) or [_usual_blocks(recipe)]
    if len(several) > 1:
        hint = "name one; a second run into the same folder takes another, and measures only what is new"
        raise AmataxError(f"--surrogate fits one number of blocks, not {', '.join(map(str, several))}", hint)
    return several[0]


def numbers(text: str, option: str) -> list[Decimal]:
    """'0:1:0.25' (both ends counted), '0.2,0.4' or both together -> decimals, as they are written.

    Raises:
        AmataxError: for what is no number, or a range that does not end.
    """
    found: list[Decimal] = []
    for part in text.split(","):
        try:
            ends = [Decimal(word.strip()) for word in part.split(":")]
        except InvalidOperation:
            raise AmataxError(f"{option} {text}: {part.strip()!r} is no number", _HOW) from None
        if not all(end.is_finite() for end in ends) or len(ends) not in (1, 3):
            raise AmataxError(f"{option} {text}: {part.strip()!r} is no number and no range", _HOW)
        if any(end and abs(end.adjusted()) > DIGITS for end in ends):
            raise AmataxError(f"{option} {text}: {part.strip()!r} is no ratio, it is too large or too small", _HOW)
        if len(ends) == 1:
            found += ends
            continue
        first, last, step = ends
        if step <= 0 or last < first:
            raise AmataxError(f"{option} {text}: the range {part.strip()!r} has no end", _HOW)
        if (last - first) / step > MOST:
            raise AmataxError(f"{option} {text}: more than {MOST} ratios", "take a larger step")
        found += [first + i * step for i in range(int((last - first) / step) + 1)]
    return list(dict.fromkeys(found))


_HOW = "write a range FIRST:LAST:STEP, such as 0:1:0.1, or a list, such as 0.2,0.4"


def by_group(ratios: Ratios) -> dict[str, float]:
    """Every ratio under its name; `mean` as the number that it is. Norms that go with their block have none of their own."""
    found: dict[str, float] = {}
    for i, block in enumerate(ratios.blocks):
        if not isinstance(block, Block):
            found[f"blocks.{i}"] = float(block)
        elif block.ratio is not None:
            found[f"blocks.{i}"] = block.ratio
        else:
            found |= {f"blocks.{i}.attention": block.attention or 0.0, f"blocks.{i}.mlp": block.mlp or 0.0}
    mean = mean_ratio(ratios)
    for name in ("head", "embeddings", "norms", "other"):
        value = getattr(ratios, name)
        if value != "block":
            found[name] = mean if value == "mean" else float(value)
    return found


def with_ratios(recipe: Recipe, ratios: Ratios) -> Recipe:
    """The recipe of another merge of the same kind."""
    return recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"ratios": ratios})})


def with_model(recipe: Recipe, role: str) -> Recipe:
    """A model as it is, in the output's dtype, whatever the method."""
    ours = recipe.merge
    merge = Merge(method="average", ratios=float(role == "rlhf"), untie=ours.untie, vocabulary=ours.vocabulary)
    return recipe.model_copy(update={"merge": merge})


def _with_blocks(recipe: Recipe, values: Sequence[Decimal]) -> Recipe:
    """Ratios of even blocks under the recipe's other words."""
    words = recipe.merge.resolved_ratios() or Ratios(blocks=[0.5])
    return with_ratios(recipe, words.model_copy(update={"blocks": [float(value) for value in values]}))


def _part(recipe: Recipe, which: int, alpha: Decimal) -> Wanted:
    """One part of the layers averaged, all else RLHF (arXiv 2309.06256, Section 4)."""
    blocks: list[float | Block] = [1.0, 1.0, 1.0]
    blocks[which] = float(alpha)
    ratios = Ratios(blocks=blocks, head=1.0, embeddings=1.0, norms=1.0, other=1.0)
    kind = f"parts-{PARTS[which]}"
    return Wanted(f"{kind} {_said(alpha)}", kind, with_ratios(recipe, ratios))


def _grid(recipe: Recipe, counts: Iterable[int], values: Sequence[Decimal]) -> Iterator[Wanted]:
    for size in counts:
        if len(values) ** size > MOST:
            count = len(values) ** size
            raise AmataxError(
                f"--grid: {len(values)} ratios in {size} blocks are {count} points", "take fewer of either"
            )
        for some in product(values, repeat=size):
            name = f"grid {','.join(_said(value) for value in some)}"
            yield Wanted(name, "grid", _with_blocks(recipe, some))


def _usual_blocks(recipe: Recipe) -> int:
    """How many blocks a fit has that is not told: the recipe's `fit.blocks`, else those of its ratios, else 3."""
    own = recipe.merge.resolved_ratios()
    if recipe.fit is not None and "blocks" in recipe.fit.model_fields_set:
        return recipe.fit.blocks
    return DEFAULT_BLOCKS if own is None or len(own.blocks) == 1 else len(own.blocks)


def _check_ratios(recipe: Recipe, ratios: Sequence[Decimal]) -> None:
    outside = [r for r in ratios if not 0 <= r <= 1]
    if outside and not recipe.merge.extrapolate:
        hint = "write `extrapolate: true` under `merge` if you mean it (ExPO)"
        raise AmataxError(f"the ratio {_said(outside[0])} is outside 0..1, the share of RLHF", hint)


def _said(value: Decimal) -> str:
    """As people write it: 0.3, 1, -0.5."""
    return f"{value.normalize() + 0:f}"
