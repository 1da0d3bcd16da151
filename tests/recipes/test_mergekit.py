"""mergekit configurations as recipes: expected ones worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from amatax.planning.ratios import plan_blocks
from amatax.recipes.mergekit import Known, parse_mergekit, to_recipe
from tests.recipes.mergekit_configs import KNOWN, LAYERS, LINEAR, SLERP, config, imported, merge_of


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (config(*LINEAR, base=False), {"method": "average", "ratios": 0.25}),
        (config("linear", "weight: 0.7", "weight: 0.3", "normalize: false", base=False), {"ratios": 0.3}),
        (config("linear", "weight: -1", "weight: 5", base=False), {"ratios": 1.25, "extrapolate": True}),
        (config("linear", top="weight: '1e-1'", base=False), {"ratios": 0.5}),  # a number as text, one for both
        (config("linear", "weight: 0", "weight: 0.2", base=False), {"ratios": 1.0}),
        (config(*LINEAR, top="weight: 0"), {"ratios": 0.25}),  # the base is merged too, with weight 0
        (
            config("task_arithmetic", "weight: 0.8", "weight: 0.6"),
            {"method": "task_arithmetic", "scale": 1.4, "ratios": 3 / 7},
        ),
        (config("task_arithmetic", "weight: 1", "weight: 3", "normalize: true, lambda: 0.5"), {"scale": 0.5, "ratios": 0.75}),
        (config("task_arithmetic", "weight: 0.1", "weight: 0.2", "lambda: 2, density: 0.1"), {"scale": 0.6}),
        (
            config("ties", "weight: 2", "weight: 2", "density: 0.2, int8_mask: true"),
            {"method": "ties", "density": 0.2, "scale": 1.0, "ratios": 0.5},
        ),
        (config("ties", "weight: 2", "weight: 6", "lambda: 1.5"), {"density": 1.0, "scale": 1.5, "ratios": 0.75}),
        (config("ties", "weight: 0", "weight: 0.5, density: 0.3", "normalize: false"), {"scale": 0.5, "ratios": 1.0, "density": 0.3}),
        (
            config("dare_linear", "weight: 0.5", "weight: 0.5", "density: 0.7"),
            {"method": "dare", "density": 0.7, "rescale": True, "scale": 1.0, "seed": 0, "ratios": 0.5},
        ),
        (
            config("dare_ties", "weight: 0.5", "weight: 0.3", "density: 0.7, normalize: true, rescale: false"),
            {"method": "dare_ties", "rescale": False, "scale": 1.0, "ratios": 0.375},
        ),
        (
            config("breadcrumbs", "weight: 1", "weight: 1", "density: 0.9, gamma: 0.02"),
            {"method": "breadcrumbs", "density": 0.9, "gamma": 0.02, "scale": 2.0, "ratios": 0.5},
        ),
        (config("breadcrumbs", "weight: 1", "weight: 1"), {"density": 1.0, "gamma": 0.01}),
        (
            config("della", "weight: 1", "weight: 1", "density: 0.5"),
            {"method": "della", "density": 0.5, "epsilon": 0.15, "rescale": True, "scale": 1.0},
        ),
        (config("della", "weight: 1", "weight: 1"), {"density": 1.0, "epsilon": 0.0}),
        (config("model_stock"), {"method": "model_stock", "ratios": 0.5}),
        (config("model_stock", "weight: 3", "weight: 1"), {"method": "model_stock", "ratios": 0.5}),  # it reads none
        (SLERP + "parameters: {t: 0.3}\n", {"method": "slerp", "ratios": 0.3}),
        (SLERP.replace("base_model: acme/sft", "base_model: acme/rlhf") + "parameters: {t: 0.3}\n", {"ratios": 0.7}),
        (SLERP + "parameters: {t: [{filter: '*', value: 0.2}, {value: 0.9}]}\n", {"ratios": 0.2}),
        (SLERP + "parameters: {t: {value: 0.2}}\n", {"ratios": 0.2}),
    ],
)  # fmt: skip
def test_the_recipe_says_the_same(text: str, want: dict[str, Any]) -> None:
    found = merge_of(text)
    assert {key: found.get(key) for key in want} == want
    assert merge_of(text, KNOWN) == found


@pytest.mark.parametrize(
    ("method", "parameters", "want"),
    [
        (
            "task_arithmetic",
            "weight: 0.8, lambda: 0.5",
            {"method": "average", "ratios": 0.8},
        ),  # lambda is not the model's
        ("ties", "weight: 0.7, density: 0.2", {"method": "ties", "scale": 1.0, "density": 0.2, "ratios": 1.0}),
        ("dare_ties", "weight: 0.7, density: 0.2", {"method": "dare", "scale": 1.0, "ratios": 0.7}),
        ("breadcrumbs_ties", "weight: 0.7, density: 0.2", {"method": "breadcrumbs", "ratios": 0.7}),
        ("della_linear", "weight: 0.7, density: 0.5", {"method": "della", "scale": 0.7, "ratios": 1.0}),
        ("dare_linear", "weight: [0, 1], density: 0.2", {"method": "dare", "scale": 1.0}),
    ],
)
def test_one_tuned_model_begins_at_the_base(method: str, parameters: str, want: dict[str, Any]) -> None:
    text = f"merge_method: {method}\nbase_model: acme/base\nmodels: [{{model: acme/tuned, parameters: {{{parameters}}}}}]\n"
    found = imported(text, KNOWN)
    merge = yaml.safe_load(found.text)["merge"]
    assert {key: merge.get(key) for key in want} == want
    assert (found.recipe.models.sft, found.recipe.models.rlhf) == ("acme/base", "acme/tuned")
    assert any("the base stands in for SFT" in note for note in found.notes)


def test_a_gradient_runs_over_the_layers_and_begins_outside() -> None:
    text = config("linear", "weight: [1, 0]", "weight: [0, 1]", base=False)
    steps = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert merge_of(text, KNOWN)["ratios"] == {
        "blocks": [{"layers": k, "ratio": step} for k, step in enumerate(steps)],
        "overrides": [{"match": n, "ratio": 0.0} for n in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")],
    }  # fmt: skip
    assert merge_of(text, Known(layers=6))["ratios"] == {
        "blocks": [{"layers": "0-5", "ratio": 0.0}],
        "overrides": [{"layers": k, "ratio": step} for k, step in enumerate(steps) if k],
    }


def test_a_gradient_between_its_points_is_a_line_and_flat_parts_are_one_override() -> None:
    text = SLERP + "parameters: {t: [{filter: mlp, value: [0.5, 0.5, 1]}, {value: 0.25}]}\n"
    assert merge_of(text, Known(layers=5))["ratios"] == {
        "blocks": [{"layers": "0-4", "ratio": 0.25}],
        "overrides": [
            {"match": "*mlp*", "layers": "0-2", "ratio": 0.5},
            {"match": "*mlp*", "layers": 3, "ratio": 0.75},
            {"match": "*mlp*", "layers": 4, "ratio": 1.0},
            {"match": "*mlp*", "ratio": 0.5},  # outside the layers: a gradient's beginning
        ],
    }


def test_slices_are_blocks_and_the_ends_are_the_first_and_the_last() -> None:
    part = "  - sources:\n    - {{model: acme/sft, layer_range: [{0}, {1}]}}\n    - {{model: acme/rlhf, layer_range: [{0}, {1}]}}\n    parameters: {{t: {2}}}\n"
    text = "merge_method: slerp\nbase_model: acme/sft\nslices:\n" + part.format(0, 2, 0.7) + part.format(2, 6, 0.1)
    assert merge_of(text, KNOWN)["ratios"] == {
        "blocks": [{"layers": "0-1", "ratio": 0.7}, {"layers": "2-5", "ratio": 0.1}],
        "overrides": [
            {"match": "model.embed_tokens.weight", "ratio": 0.7},
            {"match": "model.norm.weight", "ratio": 0.1},
            {"match": "lm_head.weight", "ratio": 0.1},
        ],
    }
    assert merge_of(text)["ratios"] == {
        "blocks": [{"layers": "0-5", "ratio": 0.1}],
        "embeddings": 0.7,
        "overrides": [{"layers": "0-1", "ratio": 0.7}],
    }


def test_a_gradient_of_a_slice_is_its_own_and_a_single_layer_has_its_end() -> None:
    part = "  - sources:\n    - {{model: acme/sft, layer_range: [{0}, {1}]}}\n    - {{model: acme/rlhf, layer_range: [{0}, {1}]}}\n"
    text = "merge_method: slerp\nbase_model: acme/sft\nslices:\n" + part.format(0, 1) + part.format(1, 6)
    blocks = merge_of(text + "parameters: {t: [0, 1]}\n", KNOWN)["ratios"]["blocks"]
    assert [block["ratio"] for block in blocks] == [1.0, 0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_model_that_a_slice_leaves_out_has_no_weight_there() -> None:
    text = """
        merge_method: linear
        parameters: {weight: 1}
        slices:
          - sources: [{model: acme/sft, layer_range: [0, 3]}]
          - sources: [{model: acme/sft, layer_range: [3, 6]}, {model: acme/rlhf, layer_range: [3, 6]}]
    """
    blocks = merge_of(text, KNOWN)["ratios"]["blocks"]
    assert blocks == [{"layers": "0-2", "ratio": 0.0}, {"layers": "3-5", "ratio": 0.5}]


def test_slices_hold_all_layers_of_a_model_that_is_not_here_or_the_plan_fails() -> None:
    part = "{{model: acme/{}, layer_range: [0, 4], parameters: {{weight: 1}}}}"
    text = f"merge_method: linear\nslices: [{{sources: [{part.format('sft')}, {part.format('rlhf')}]}}]\n"
    recipe = imported(text).recipe
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    _, faults = plan_blocks(recipe, ratios, LAYERS)
    assert "no block holds layers 4-5" in faults[0].message


def test_weights_may_change_where_their_sum_does_not() -> None:
    text = config("task_arithmetic", "weight: [0.9, 0.2]", "weight: [0.3, 1]", "lambda: 0.5")
    found = merge_of(text, KNOWN)
    assert found["scale"] == 0.6
    assert found["ratios"]["blocks"][0] == {"layers": 0, "ratio": 0.25}


def test_a_filter_that_fits_nothing_is_left_out_of_a_known_model() -> None:
    text = (
        SLERP
        + "parameters: {t: [{filter: experts, value: [0, 1]}, {filter: lm_head, value: [0.75, 1]}, {value: 0.5}]}\n"
    )
    assert merge_of(text, KNOWN)["ratios"] == {
        "blocks": [0.5],
        "overrides": [{"match": "lm_head.weight", "ratio": 0.75}],
    }


def test_an_adapter_is_one_in_the_recipe() -> None:
    text = config(*LINEAR, base=False).replace("acme/rlhf", "acme/sft@v1+acme/lora@v2")
    found = to_recipe(parse_mergekit(text, "m.yml"), Known(), Path("recipe.yaml")).recipe.models
    assert found.references()["rlhf"] == "acme/sft@v1"
    assert found.references()["rlhf adapter"] == "acme/lora@v2"


def test_which_is_rlhf_can_be_said() -> None:
    for options in ({"sft": "acme/rlhf"}, {"rlhf": "acme/sft"}, {"sft": "acme/rlhf", "rlhf": "acme/sft"}):
        found = imported(config(*LINEAR, base=False), **options)
        assert (found.recipe.models.sft, found.recipe.models.rlhf) == ("acme/rlhf", "acme/sft")
        assert found.recipe.merge.ratios == 0.75
    listed_alone = "merge_method: slerp\nbase_model: acme/b\nmodels: [{model: acme/a}]\nparameters: {t: 0.2}\n"
    found = imported(listed_alone)
    assert (found.recipe.models.sft, found.recipe.models.rlhf, found.recipe.merge.ratios) == ("acme/b", "acme/a", 0.2)


def test_dtype_tokenizer_and_config() -> None:
    text = config("ties", "weight: 1", "weight: 1") + "dtype: float32\n"
    found = imported(text)
    assert found.recipe.output.model_dump(include={"dtype", "tokenizer", "config"}) == {
        "dtype": "float32",
        "tokenizer": "base",
        "config": "base",
    }
    assert any("tokenizer: sft" in note for note in found.notes)
    found = imported(text + "out_dtype: torch.bfloat16\ntokenizer_source: acme/rlhf\n")
    assert (found.recipe.output.dtype, found.recipe.output.tokenizer) == ("bfloat16", "rlhf")
    assert any("rows" in note for note in found.notes)
    found = imported(config("linear", "weight: 1", "weight: 1", "weight: 0"))
    assert (found.recipe.models.base, found.recipe.output.config) == ("acme/base", "base")
