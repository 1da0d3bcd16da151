"""mergekit configurations as recipes: expected ones worked out by hand, every refusal, and the ratio of every tensor by another way."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amatax import api
from amatax.errors import OutputError, RecipeError
from amatax.planning.names import anatomy
from amatax.planning.ratios import plan_blocks, tensor_ratios
from amatax.recipes.loading import load_recipe
from amatax.recipes.mergekit import Imported, Known, Tensor, parse_mergekit, to_recipe
from tests.conftest import Run
from tests.test_boundaries import heavy_imports

LAYERS = 6
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(LAYERS)
        for part in ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
MODEL = anatomy(NAMES, {"num_hidden_layers": LAYERS})
KNOWN = Known({name: Tensor(p.layer, p.kind) for name, p in MODEL.places.items()}, LAYERS)


def imported(text: str, known: Known | None = None, **options: Any) -> Imported:
    return to_recipe(parse_mergekit(textwrap.dedent(text), "m.yml"), known or Known(), Path("r.yaml"), **options)


def merge_of(text: str, known: Known | None = None, **options: Any) -> dict[str, Any]:
    return yaml.safe_load(imported(text, known, **options).text)["merge"]


def config(method: str, sft: str = "", rlhf: str = "", top: str = "", base: bool = True) -> str:
    """Two models with their parameters, and those of all."""
    return (
        f"merge_method: {method}\n" + ("base_model: acme/base\n" if base else "") + "models:\n"
        f"  - {{model: acme/sft, parameters: {{{sft}}}}}\n  - {{model: acme/rlhf, parameters: {{{rlhf}}}}}\n"
        f"parameters: {{{top}}}\n"
    )


LINEAR = ("linear", "weight: 3", "weight: 1")
SLERP = "merge_method: slerp\nbase_model: acme/sft\nmodels: [{model: acme/sft}, {model: acme/rlhf}]\n"


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (config("task_arithmetic", "weight: 1", "weight: 1") + "basemodel: x\n", ["`basemodel`", "`base_model`?"]),
        (config("ties", "weight: 1, densty: 0.1", "weight: 1"), ["`densty`", "`density`?", "no effect there, nor here"]),
        (config("ties", "weight: 1, lambda: 0.1", "weight: 1"), ["m.yml:4 (models[0].parameters.lambda)", "not of a model"]),
        (config("ties", "weight: 1", "weight: 1", "int8_mask: true"), ["int8_mask", "no number"]),
        (config("task_arithmetic", "weight: 1, density: 0.1", "weight: 1"), ["drops nothing"]),
        (config("ties", "weight: 1", "weight: 1", "density: 0.5"), ["ties:", "at least one"]),
        (config("dare_linear", "weight: 1", "weight: 1", "density: 0.5"), ["rescale:", "sum of magnitudes"]),
        (config("dare_linear", "weight: 1", "weight: 1", "density: 0.5"), ["random drops:", "--random-seed"]),
        (config("della", "weight: 1", "weight: 1", "density: 0.5"), ["ranks:", "row"]),
        (config("della", "weight: 1", "weight: 1", "density: 0.5"), ["rescale:", "unbiased"]),
        (config("breadcrumbs", "weight: 1", "weight: 1", "density: 0.5"), ["breadcrumbs:", "floor"]),
        (SLERP + "parameters: {t: 1}\n", ["slerp:", "perpendicular"]),
        (config("ties", "weight: 1", "weight: 1") + "dtype: bfloat16\n", ["arithmetic:", "in bfloat16", "each step"]),
        (config("ties", "weight: 1", "weight: 1"), ["sign election:", "rounding decides"]),
        (
            config("ties", "weight: 1", "weight: 1").replace("models:\n", "models:\n  - {model: acme/base, parameters: {weight: 1}}\n"),
            ["the base has no `weight`", "m.yml:4"],
        ),
        (config(*LINEAR, base=False), ["dtype:", "widest"]),
        (config(*LINEAR, base=False) + "chat_template: auto\n", ["chat template", "auto"]),
    ],
)  # fmt: skip
def test_where_the_two_differ_a_note_says_it(text: str, words: list[str]) -> None:
    assert any(all(word in note for word in words) for note in imported(text).notes), imported(text).notes


def test_nothing_is_noted_of_drops_where_nothing_is_dropped() -> None:
    for method in ("ties", "dare_linear", "della", "breadcrumbs"):
        notes = imported(config(method, "weight: 1", "weight: 1")).notes
        assert not [note for note in notes if note.startswith(("ties", "random", "rescale", "ranks", "breadcrumbs"))]


SLICE = "{{sources: [{{model: acme/sft, layer_range: {}}}, {{model: acme/rlhf, layer_range: {}}}]}}"
LIKE = "merge_method: linear\nparameters: {{weight: 1}}\nslices: [{}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("- 1\n", ["mapping"]),
        ("models: [{model: a/b}]\n", ["`merge_method` is needed"]),
        ("experts: []\nbase_model: a/b\n", ["mergekit-moe"]),
        ("merge_method: tise\nmodels: [{model: a/b}]\n", ["no method 'tise'", "`ties`"]),
        ("merge_method: model_stock\nmodels: [{model: a/b}]\n", ["`model_stock`", "angle", "task_arithmetic"]),
        ("merge_method: passthrough\nmodels: [{model: a/b}]\n", ["stacks layers"]),
        ("merge_method: nuslerp\nmodels: [{model: a/b}]\n", ["slerp"]),
        ("merge_method: sce\nmodels: [{model: a/b}]\n", ["no such method here"]),
        (config("breadcrumbs_ties", "weight: 1", "weight: 1"), ["sign election", "m.yml:1 (merge_method)"]),
        (config("della_linear", "weight: 1", "weight: 1"), ["always elects signs"]),
        (config("dare_ties", "weight: 1", "weight: 1"), ["normalize", "mean", "counts in full"]),
        (config("ties", "weight: 1", "weight: 1", "normalize: false"), ["m.yml:6 (parameters.normalize)", "mean"]),
        (config("ties", "weight: 1, density: 0.2", "weight: 1, density: 0.5"), ["`density` is 0.2 and 0.5, by model"]),
        (config("ties", "weight: 1", "weight: 1", "rescale: true, density: 0.5"), ["(parameters.rescale)", "random drops"]),
        (config("ties", "weight: 1", "weight: 1", "density: 1.5"), ["`density` is 1.5", "between 0 and 1"]),
        (config("ties", "weight: 1", "weight: 1", "density: [0.2, 0.5]"), ["density", "once for all tensors", "0.2", "0.26"]),
        (config("ties", "weight: 1", "weight: 1", "density: [{filter: mlp, value: 0.2}]"), ["density", "0.2", "1"]),
        (config("ties", "weight: 1", "weight: 1", "lambda: [1, 0.5]"), ["scale", "(parameters.lambda)", "layer 0"]),
        (config("task_arithmetic", "weight: 1", "weight: [0, 1]"), ["scale", "weight", "1.2 (layer 1)", "same sum"]),
        (config("task_arithmetic", "weight: 1", "weight: -1"), ["sum to 0"]),
        (config("task_arithmetic", "weight: 0", "weight: 0"), ["both weights are 0"]),
        (config("della", "weight: 1", "weight: 1", "density: 0.1"), ["leads out of 0..1"]),
        (config("ties", "", "weight: 1"), ["no `weight` for 'acme/sft'", "mergekit refuses this too"]),
        (config("ties", "weight: 1", "weight: 1", base=False), ["`base_model` is needed"]),
        (config("linear", "weight: 1", "weight: -1", base=False), ["sum to 0"]),
        (config("linear", "weight: 1", "weight: 1", "normalize: false", base=False), ["sum to 2", "scaled"]),
        (config("linear", "weight: 1", "weight: 1"), ["no `weight` for 'acme/base'"]),
        (config("linear", "weight: 1", "weight: 1", "weight: 1"), ["3 models", "acme/base", "merge two of them"]),
        (config("linear", "weight: x", "weight: 1", base=False), ["'x' is no number", "m.yml:3"]),
        (config("linear", "weight: .inf", "weight: 1", base=False), ["not finite"]),
        (config("linear", "weight: null", "weight: 1", base=False), ["None is no value"]),
        (config("linear", "weight: [{filter: mlp, value: 1}, 2]", "weight: 1", base=False), ["2 stands among items"]),
        (config("linear", "weight: [{filter: mlp}]", "weight: 1", base=False), ["an item is {filter:"]),
        (config("linear", "weight: [{filter: vision, value: 1}]", "weight: 1", base=False), ["no filter", "no `weight`"]),
        (config(*LINEAR, "normalize: maybe", base=False), ["'maybe' is neither true nor false"]),
        ("merge_method: linear\nmodels: [{model: a/b, parameters: {weight: 1}}]\n", ["1 model to merge"]),
        ("merge_method: ties\nbase_model: a/b\nmodels: [{model: a/b}]\n", ["no model to merge"]),
        ("merge_method: linear\nmodels: [{model: a/b}, {model: a/b}]\nparameters: {weight: 1}\n", ["stands twice"]),
        ("merge_method: linear\nmodels: [{}]\n", ["m.yml:2 (models[0].model)", "owner/name"]),
        ("merge_method: linear\nmodels: {model: a/b}\n", ["list of mappings"]),
        ("merge_method: linear\n", ["exactly one of `models`"]),
        ("merge_method: linear\nmodules: {text: {models: [{model: a/b}]}}\n", ["`modules`"]),
        (config(*LINEAR, base=False).replace("acme/rlhf", "acme/rlhf+a/b+c/d"), ["LoRA", "one adapter"]),
        (config(*LINEAR, base=False).replace("acme/rlhf", "acme/rlhf@a@b"), ["more than one @"]),
        (config(*LINEAR, base=False).replace("acme/rlhf", "models/a/rlhf"), ["neither a folder here nor a Hub id"]),
        (config(*LINEAR, base=False) + "dtype: bf16\n", ["(dtype)", "bfloat16"]),
        (config(*LINEAR, base=False) + "tokenizer_source: union\n", ["union", "tokenizer_source: base"]),
        (config(*LINEAR, base=False) + "tokenizer: {pad_to_multiple_of: 64}\n", ["pad_to_multiple_of", "union"]),
        (config(*LINEAR, base=False) + "tokenizer_source: acme/other\n", ["'acme/other'", "not merged"]),
        (config(*LINEAR, base=False) + "tokenizer_source: base\ntokenizer: {source: base}\n", ["stand together"]),
        (config(*LINEAR, base=False) + "chat_template: chatml\n", ["chat_template.jinja"]),
        (config(*LINEAR, base=False) + "parameters: {}\n", ["twice"]),
        (LIKE.format(SLICE.format([0, 4], [2, 6])), ["different layers"]),
        (LIKE.format(SLICE.format([2, 4], [2, 4])), ["begins with layer 2 where layer 0 is next"]),
        (LIKE.format(SLICE.format([0, 4], [0, 4]) + ", " + SLICE.format([3, 6], [3, 6])), ["layer 4 is next"]),
        (LIKE.format(SLICE.format([0, 4], [0, 4])), ["hold layers 0 to 3, the model has 6"]),
        (LIKE.format(SLICE.format([4, 0], [4, 0])), ["`layer_range`", "[0, 8]"]),
        (LIKE.format("{sources: []}"), ["`sources`"]),
        (SLERP + "parameters: {t: 0.5}\n".replace("t:", "u:"), ["no `t`"]),
        (SLERP.replace("]", ", {model: acme/third}]") + "parameters: {t: 1}\n", ["not 3"]),
        (
            "merge_method: slerp\nbase_model: acme/sft\nparameters: {t: 0.5}\nslices: ["
            + f"{SLICE.format([0, 3], [0, 3])}, {SLICE.format([3, 6], [3, 6]).replace('rlhf', 'third')}]\n",
            ["3 models", "acme/third"],
        ),
        (
            "merge_method: ties\nbase_model: a/b\nparameters: {weight: 1}\nslices: [" + SLICE.format([0, 6], [0, 6]) + "]\n",
            ["'a/b' is not among the slice's sources"],
        ),
    ],
)  # fmt: skip
def test_what_no_recipe_says_is_refused_with_its_reason(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(text, KNOWN)
    message = "\n".join(map(str, caught.value.faults))
    assert all(word in message for word in words), message
    assert "m.yml" in message


def test_all_faults_at_once() -> None:
    text = config("linear", "weight: x", "weight: [y]", base=False) + "dtype: int8\ntokenizer_source: union\n"
    with pytest.raises(RecipeError) as caught:
        imported(text)
    assert len(caught.value.faults) == 4
    with pytest.raises(RecipeError) as caught:
        imported(config("dare_ties", "weight: 1, density: 0.5", "weight: 1, density: 0.7"))
    assert len(caught.value.faults) == 2


def test_more_than_two_models_are_refused_but_for_those_without_weight() -> None:
    text = config("ties", "weight: 1", "weight: 1").replace(
        "models:\n", "models:\n  - {model: acme/third, parameters: {weight: W}}\n"
    )
    with pytest.raises(RecipeError, match="3 models are merged"):
        imported(text.replace("W", "0.1"))
    assert imported(text.replace("W", "0")).recipe.models.sft == "acme/sft"


def test_how_many_layers_must_be_known_for_a_gradient() -> None:
    text = config("linear", "weight: [0, 1]", "weight: 1", base=False)
    with pytest.raises(RecipeError, match="--layers 32"):
        imported(text)
    with pytest.raises(RecipeError, match="encoder and decoder"):
        imported(text, Known(layers=6, stacks=2))


def test_filters_in_another_order_for_each_model() -> None:
    sft = "weight: [{filter: proj, value: 1}, {filter: mlp, value: 2}, {value: 3}]"
    rlhf = "weight: [{filter: mlp, value: 1}, {filter: proj, value: 2}, {value: 4}]"
    text = config("linear", sft, rlhf, base=False)
    with pytest.raises(RecipeError, match="same filters in the same order"):
        imported(text)
    # of a known model: every mlp is a proj, so that mlp comes first
    assert merge_of(text, KNOWN)["ratios"] == {
        "blocks": [4 / 7],
        "overrides": [{"match": "*mlp*", "ratio": 0.5}, {"match": "*proj*", "ratio": 2 / 3}],
    }


def test_many_filters_need_a_known_model() -> None:
    choices = ", ".join(f"{{filter: q{i}_proj, value: 0.1}}" for i in range(9))
    text = SLERP + f"parameters: {{t: [{choices}, {{value: 0.5}}]}}\n"
    with pytest.raises(RecipeError, match="9 filters"):
        imported(text)
    assert merge_of(text, KNOWN)["ratios"] == 0.5


def test_roles_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match="no such model here"):
        imported(config(*LINEAR, base=False), sft="acme/other")
    with pytest.raises(RecipeError, match="both"):
        imported(config(*LINEAR, base=False), sft="acme/sft", rlhf="acme/sft")
    alone = "merge_method: ties\nbase_model: a/b\nmodels: [{model: a/c, parameters: {weight: 1}}]\n"
    with pytest.raises(RecipeError, match="begin at"):
        imported(alone, sft="a/c")


# the ratio of every tensor, worked out tensor by tensor in floating point


def value_of(setting: Any, name: str, t: float) -> float | None:
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        fits = [item for item in setting if item.get("filter") is None or item["filter"] in name]
        return value_of(fits[0]["value"], name, t) if fits else None
    if isinstance(setting, list):
        position = t * (len(setting) - 1)
        i = min(int(position), len(setting) - 2) if len(setting) > 1 else 0
        return setting[i] + (position - i) * (setting[min(i + 1, len(setting) - 1)] - setting[i])
    return setting


def ratio_of(data: dict[str, Any], name: str) -> float:
    """The share of RLHF of a tensor in a linear merge."""
    layer = MODEL.places[name].layer
    parts = data.get("slices") or [{"sources": [{**m, "layer_range": [0, LAYERS]} for m in data["models"]]}]
    part, t = parts[0] if "embed" in name else parts[-1], 0.0
    for candidate in parts if layer is not None else ():
        first, end = candidate["sources"][0]["layer_range"]
        if first <= layer < end:
            part, t = candidate, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
    weights = []
    for source in part["sources"]:
        scopes = [source.get("parameters", {}), part.get("parameters", {}), data.get("parameters", {})]
        found = (value_of(scope["weight"], name, t) for scope in scopes if "weight" in scope)
        weights.append(next(value for value in found if value is not None))
    return weights[1] / sum(weights)


NUMBERS = st.integers(1, 20).map(lambda n: n / 10)
GRADIENTS = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4))
FILTERS = st.sampled_from(
    ["mlp", "self_attn", "q_proj", "proj", "norm", "lm_head", "embed", "layers.1", "model", "nothing"]
)
CHOICES = st.lists(st.fixed_dictionaries({"filter": FILTERS, "value": GRADIENTS}), min_size=1, max_size=3)
SETTINGS = st.one_of(GRADIENTS, CHOICES)


@st.composite
def linear_configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Weights in any scope; the whole has a number, so that every tensor has one."""

    def scope() -> dict[str, Any]:
        return draw(st.one_of(st.just({}), SETTINGS.map(lambda setting: {"weight": setting})))

    data: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": draw(GRADIENTS)}}
    names = ["acme/sft", "acme/rlhf"]
    cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1), max_size=2)))
    if draw(st.booleans()):
        data["models"] = [{"model": name, "parameters": scope()} for name in names]
        return data
    data["slices"] = [
        {"sources": [{"model": n, "layer_range": [a, b], "parameters": scope()} for n in names], "parameters": scope()}
        for a, b in zip([0, *cuts], [*cuts, LAYERS], strict=True)
    ]
    return data


@pytest.mark.parametrize("known", [KNOWN, Known(layers=LAYERS)])
@given(data=linear_configurations())
def test_every_tensor_has_mergekit_s_ratio(known: Known, data: dict[str, Any]) -> None:
    try:
        recipe = imported(yaml.safe_dump(data), known).recipe
    except (
        RecipeError
    ) as error:  # filters that no list of overrides orders, and where nothing is known, those of both ends
        assert "overlap in another order" in str(error) or (known is not KNOWN and "have the model" in str(error))
        return
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    blocks, faults = plan_blocks(recipe, ratios, LAYERS)
    assert not faults
    found, unused = tensor_ratios(recipe, ratios, MODEL, blocks, tied=False)
    assert known is not KNOWN or not unused
    assert found == pytest.approx({name: ratio_of(data, name) for name in NAMES}, abs=1e-14)


@given(setting=SETTINGS, last=NUMBERS)
def test_one_parameter_is_never_refused(setting: Any, last: float) -> None:
    text = yaml.safe_dump({"merge_method": "slerp", "base_model": "acme/sft", "models": [{"model": "acme/sft"}, {"model": "acme/rlhf"}],
                           "parameters": {"t": [*setting, {"value": last}] if isinstance(setting, list) and isinstance(setting[0], dict) else setting}})  # fmt: skip
    imported(text, KNOWN)
    imported(text, Known(layers=LAYERS))


# the command

HERE = "merge_method: linear\nmodels:\n  - {model: sft, parameters: {weight: [3, 1]}}\n  - {model: ./rlhf, parameters: {weight: [{filter: mlp, value: 1}, {value: 2}]}}\n"


def test_folders_here_are_looked_at_and_the_recipe_plans(siblings: Path, amatax: Callable[..., Run]) -> None:
    (siblings / "m.yml").write_text(HERE)
    (siblings / "deep").mkdir()
    done = amatax("import", "m.yml", "-o", "deep/r.yaml")
    assert done.code == 0, done.err
    assert "note: " in done.err and "deep/r.yaml" in done.out
    data = yaml.safe_load((siblings / "deep" / "r.yaml").read_text())
    assert data["models"] == {"sft": "../sft", "rlhf": "../rlhf"}
    planned = api.plan(load_recipe(siblings / "deep" / "r.yaml"), siblings / "out")
    assert planned.tensors["model.layers.5.mlp.up_proj.weight"].ratio == 0.5
    assert planned.tensors["model.layers.5.self_attn.q_proj.weight"].ratio == pytest.approx(2 / 3)
    assert planned.tensors["lm_head.weight"].ratio == 0.4
    assert amatax("merge", "deep/r.yaml", "out", "--quiet").code == 0


def test_standard_output_is_a_recipe_of_this_folder(siblings: Path, amatax: Callable[..., Run]) -> None:
    (siblings / "m.yml").write_text(HERE.replace("./rlhf", str(siblings / "rlhf")))
    done = amatax("import", "m.yml")
    assert yaml.safe_load(done.out)["models"] == {"sft": "./sft", "rlhf": str(siblings / "rlhf")}
    (siblings / "piped.yaml").write_text(done.out)
    assert amatax("merge", "piped.yaml", "out", "--dry-run").code == 0
    asked = amatax("import", "m.yml", "--json", "--rlhf", "sft").json
    assert asked["recipe"]["models"]["rlhf"] == "./sft"
    assert asked["output"] is None and asked["notes"]


def test_a_recipe_that_is_there_is_kept(siblings: Path, amatax: Callable[..., Run]) -> None:
    (siblings / "m.yml").write_text(HERE)
    before = (siblings / "recipe.yaml").read_text()
    done = amatax("import", "m.yml", "-o", "recipe.yaml")
    assert done.code == 2 and "--overwrite" in done.err
    assert (siblings / "recipe.yaml").read_text() == before
    assert amatax("import", "m.yml", "-o", "recipe.yaml", "--overwrite").code == 0
    assert (siblings / "recipe.yaml").read_text() != before


def test_faults_end_with_2_and_name_the_line(siblings: Path, amatax: Callable[..., Run]) -> None:
    (siblings / "m.yml").write_text(HERE + "dtype: int8\ntokenizer_source: union\n")
    done = amatax("import", "m.yml", "-o", "r.yaml")
    assert (done.code, done.out) == (2, "")
    assert "2 faults" in done.err and "m.yml:5 (dtype)" in done.err
    assert not (siblings / "r.yaml").exists()
    for command in (["import", "none.yml"], ["import", "sft"], ["import", "m.yml", "--layers", "-1"]):
        assert amatax(*command).code == 2
    (siblings / "m.yml").write_text(HERE)
    assert "sft has 6" in amatax("import", "m.yml", "--layers", "7").err
    assert amatax("import", "m.yml", "-o", "nowhere/r.yaml").code == 2


def test_folders_lead_to_the_same_place_through_a_link(
    siblings: Path, tmp_path_factory: pytest.TempPathFactory, amatax: Callable[..., Run]
) -> None:
    far = tmp_path_factory.mktemp("far") / "deep"
    far.mkdir()
    (siblings / "link").symlink_to(far)
    (siblings / "m.yml").write_text(HERE)
    assert amatax("import", "m.yml", "-o", "link/r.yaml").code == 0
    assert load_recipe(siblings / "link" / "r.yaml").models.sft == str((siblings / "sft").resolve())


def test_a_folder_that_is_no_checkpoint_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft").mkdir()
    (tmp_path / "m.yml").write_text(HERE)
    found = api.import_mergekit("m.yml", layers=6)
    assert any("names are not known" in note for note in found.notes)
    with pytest.raises(OutputError):
        api.import_mergekit("m.yml", "m.yml", layers=6)


def test_importing_needs_no_torch(siblings: Path) -> None:
    (siblings / "m.yml").write_text(HERE)
    assert heavy_imports({"torch", "transformers", "huggingface_hub"}, ["import", "m.yml"], siblings) == []
