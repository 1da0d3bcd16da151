"""mergekit configurations: every refusal with its reason, and the notes where the two tools differ."""

from __future__ import annotations

import contextlib

import pytest

from amatax.errors import RecipeError
from amatax.recipes.mergekit import Known
from tests.recipes.mergekit_configs import KNOWN, LINEAR, SLERP, config, imported, merge_of


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


def test_what_a_yaml_merge_key_brings_is_read_as_mergekit_reads_it() -> None:
    """`<<: *common` is YAML's, no parameter; a slip in what it brings is noted where it is."""
    text = """\
merge_method: ties
base_model: acme/base
models:
  - {model: acme/sft, parameters: &common {weight: 0.5, density: 0.4, densty: 1}}
  - {model: acme/rlhf, parameters: {<<: *common, weight: 0.7}}
  - {model: acme/base, parameters: {<<: [*common, {gamma: 1}]}}
"""
    found = imported(text)
    assert merge_of(text)["density"] == 0.4
    assert not any("<<" in note for note in found.notes), found.notes
    assert sum("no `densty` (`density`?)" in note for note in found.notes) >= 1
    assert any("no `gamma`" in note for note in found.notes)


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
        (config("model_stock", top="filter_wise: true"), ["m.yml:", "(parameters.filter_wise)", "every row", "leave it out"]),
        ("merge_method: model_stock\nbase_model: a/b\nmodels: [{model: c/d}]\n", ["one tuned model", "mergekit refuses this too"]),
        ("merge_method: model_stock\nmodels: [{model: a/b}, {model: c/d}]\n", ["`base_model` is needed"]),
        ("merge_method: model_stock\nbase_model: a/b\nmodels: [{model: c/d}, {model: e/f}, {model: g/h}]\n", ["3 models are merged (c/d, e/f, g/h)"]),
        ("merge_method: passthrough\nmodels: [{model: a/b}]\n", ["stacks layers"]),
        ("merge_method: nuslerp\nmodels: [{model: a/b}]\n", ["slerp"]),
        ("merge_method: sce\nmodels: [{model: a/b}]\n", ["no such method here"]),
        (config("breadcrumbs_ties", "weight: 1", "weight: 1"), ["sign election", "m.yml:1 (merge_method)", "the nearest: `merge_method: breadcrumbs`", "`merge_method: ties`"]),
        (config("della_linear", "weight: 1", "weight: 1"), ["always elects signs", "the nearest: `merge_method: della` with `normalize: true`"]),
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
        (config("linear", "weight: 1.0e+308", "weight: 1.0e+308", base=False), ["m.yml:3", "1e+308 is more than float32 holds (3.4e+38)"]),
        (config("task_arithmetic", "weight: 1e308", "weight: 1", "lambda: 1e308"), ["more than float32 holds", "lambda"]),
        (SLERP + "parameters: {t: -1.0e+39}\n", ["-1e+39 is more than"]),
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


@pytest.mark.parametrize("nearest", [("breadcrumbs", ""), ("ties", ""), ("della", "normalize: true")])
def test_what_is_named_as_the_nearest_is_a_recipe(nearest: tuple[str, str]) -> None:
    """Of breadcrumbs_ties and della_linear: what their refusals point to is taken as it is written there."""
    method, parameters = nearest
    assert imported(config(method, "weight: 1", "weight: 1", parameters), KNOWN).recipe.merge.method == method


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("weight", ["3.4e+38", "-3.4e+38", "1.0e-300", "5.0e-324"])
def test_the_largest_and_smallest_numbers_are_a_recipe_or_a_fault(method: str, weight: str) -> None:
    """With `lambda` as large, and another weight that nearly cancels it: never another exception."""
    for other in (weight, "1", "3.3999999999999995e+38"):
        for top in ("", "normalize: false", f"lambda: {weight}"):
            text = config(method, f"weight: {weight}", f"weight: {other}", top, base=method != "linear")
            with contextlib.suppress(RecipeError):
                imported(text, KNOWN)


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
