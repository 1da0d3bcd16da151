"""Which merges a sweep measures, and what they are called."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from amatax.errors import AmataxError
from amatax.evaluation.points import WAYS, Wanted, by_group, numbers, wanted_points
from amatax.planning.plan import make_plan
from amatax.recipes.gallery import gallery
from amatax.recipes.loading import dump_recipe, load_recipe, parse_recipe
from amatax.recipes.schema import Ratios, Recipe


def recipe(**merge: Any) -> Recipe:
    return load_recipe({"models": {"sft": "./sft", "rlhf": "./rlhf"}, "merge": merge})


def points(wanted: Recipe, alpha: str = "0:1:0.5", ways: str = "uniform", **more: Any) -> dict[str, Wanted]:
    found = wanted_points(wanted, numbers(alpha, "--alpha"), ways.split(","), **more)
    assert len({point.name for point in found}) == len(found)
    return {point.name: point for point in found}


def blocks(point: Wanted) -> Any:
    assert point.recipe is not None
    ratios = point.recipe.merge.resolved_ratios()
    assert ratios is not None
    return ratios.blocks


def test_numbers_are_decimals() -> None:
    assert [float(n) for n in numbers("0:1:0.1", "")] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert numbers("0.2, 0.4,0.2", "") == [Decimal("0.2"), Decimal("0.4")]
    assert [float(n) for n in numbers("0:1:0.3,1", "")] == [0, 0.3, 0.6, 0.9, 1]
    assert numbers("0.5:0.5:1", "") == [Decimal("0.5")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no number"),
        ("0:1", "no number and no range"),
        ("a", "'a' is no number"),
        ("0:1:0", "has no end"),
        ("1:0:0.1", "has no end"),
        ("nan", "no number"),
        ("0:inf:1", "no number"),
        ("0:1:1e-9", "more than"),
        ("1e999999", "too large"),
        ("0:1e999999:1e-999999", "too large"),
    ],
)
def test_what_is_no_number(text: str, said: str) -> None:
    with pytest.raises(AmataxError, match=said) as caught:
        numbers(text, "--alpha")
    assert caught.value.hint


def test_uniform_and_the_models() -> None:
    found = points(recipe(ratios={"blocks": [0.7, 0.1], "embeddings": 0, "norms": 0.25}), "0:1:0.1")
    assert list(found) == ["sft", "rlhf", "uniform 0", *(f"uniform 0.{n}" for n in range(1, 10)), "uniform 1"]
    one = found["uniform 0.3"]
    assert one.alpha == 0.3
    assert one.ratios == {"blocks.0": 0.3, "head": 0.3, "embeddings": 0.0, "norms": 0.25, "other": 0.3}
    assert one.recipe is not None
    assert parse_recipe(dump_recipe(one.recipe), "r", Path.cwd()).merge == one.recipe.merge
    for role in ("sft", "rlhf"):
        assert (found[role].kind, found[role].alpha, found[role].ratios) == (role, None, {})


def test_the_models_are_themselves_whatever_the_method() -> None:
    plain = load_recipe(gallery()["ties"])
    found = points(plain)
    for role in ("sft", "rlhf"):
        model = found[role].recipe
        assert model is not None
        plan = make_plan(model)
        assert {tensor.copy_of for tensor in plan.tensors.values()} == {role}
    uniform = found["uniform 0.5"].recipe
    assert uniform is not None
    assert (uniform.merge.method, uniform.merge.options) == ("ties", plain.merge.options)


@pytest.mark.parametrize("part", ["input", "middle", "output"])
def test_parts_are_the_gallerys(part: str) -> None:
    """Section 4 of the paper: one part averaged, all else RLHF."""
    written = yaml.safe_load(gallery()[f"average-{part}"].read_text())["merge"]["ratios"]
    point = points(recipe(ratios=0.4), "0.4", "parts")[f"parts-{part} 0.4"]
    assert point.recipe is not None
    assert point.recipe.merge.ratios == Ratios.model_validate(written)
    assert (point.kind, point.alpha) == (f"parts-{part}", 0.8)


def test_fits_are_named_by_their_blocks() -> None:
    found = points(recipe(), "0:1:0.5", "fitted,tax-aware", blocks=[3, 6])
    assert list(found)[2:] == ["fitted-3 0.5", "fitted-6 0.5", "tax-aware-3 0.5", "tax-aware-6 0.5"]
    assert found["tax-aware-6 0.5"].fitting == (6, 0.5, True)
    assert found["fitted-3 0.5"].alpha == 0.5
    assert list(points(recipe(), "0.5", "fitted"))[2:] == ["fitted-3 0.5"]
    own = points(recipe(ratios=[0.1, 0.2]), "0.5", "fitted")["fitted-2 0.5"]
    assert own.fitting == (None, 0.5, False)  # of the recipe's own blocks, whose layers may be written out
    several = points(recipe(), "0:1:0.5", "uniform,fitted", fit_alphas=numbers("0.2,0.4", ""))
    assert list(several)[5:] == ["fitted-3 0.2", "fitted-3 0.4"]


def test_a_grid_is_every_combination() -> None:
    found = points(recipe(), "0.5", "uniform", blocks=[2], grid=numbers("0,0.5,1", ""))
    assert list(found)[3:] == [f"grid {a},{b}" for a in ("0", "0.5", "1") for b in ("0", "0.5", "1")]
    assert blocks(found["grid 0.5,1"]) == [0.5, 1.0]
    assert found["grid 0.5,1"].alpha == 0.75
    assert len(points(recipe(), "0.5", "uniform", blocks=[2, 3], grid=numbers("0,1", ""))) == 3 + 4 + 8
    with pytest.raises(AmataxError, match="531441 points"):
        points(recipe(), blocks=[12], grid=numbers("0,0.5,1", ""))


def test_ratios_by_group() -> None:
    words = Ratios.model_validate(
        {"blocks": [{"layers": "0-1", "attention": 0.2, "mlp": 0.4}, {"layers": 2, "ratio": 0.9}], "norms": "mean"}
    )
    assert by_group(words) == {
        "blocks.0.attention": 0.2,
        "blocks.0.mlp": 0.4,
        "blocks.1": 0.9,
        "head": 0.5,
        "embeddings": 0.5,
        "norms": 0.5,
        "other": 0.5,
    }


def test_wishes_that_make_no_point() -> None:
    with pytest.raises(AmataxError, match="--with unifrom") as caught:
        points(recipe(), ways="unifrom")
    assert caught.value.hint == "did you mean `uniform`?"
    with pytest.raises(AmataxError, match="--with x") as caught:
        points(recipe(), ways="x")
    assert all(way in caught.value.hint for way in WAYS)
    with pytest.raises(AmataxError, match=r"ratio 1.5 is outside 0..1"):
        points(recipe(), "0,1.5")
    assert "uniform 1.5" in points(recipe(extrapolate=True), "0,1.5")
    with pytest.raises(AmataxError, match="no alpha between 0 and 1"):
        points(recipe(), "0,1", "fitted")
    with pytest.raises(AmataxError, match="--fit-alpha"):
        points(recipe(), "0.5", "fitted", fit_alphas=numbers("0.5,1", ""))
    with pytest.raises(AmataxError, match="no ratios of its own"):
        points(recipe(), ways="recipe")
    assert points(recipe(ratios=[0.2, 0.4]), ways="recipe")["recipe"].alpha == pytest.approx(0.3)
