"""Faults of a recipe's text: all at once, with line and key path and the nearest real key."""

from __future__ import annotations

from pathlib import Path

import pytest

from amatax.errors import RecipeError
from amatax.recipes.loading import load_recipe, parse_recipe, read_yaml
from amatax.recipes.schema import parse_layers, parse_size

MODELS = "models: {sft: ./a, rlhf: ./b}\n"


def faults(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", Path("/recipes"))
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["r.yaml", "empty"]),
        ("- 1\n", ["mapping"]),
        ("merge_method: linear\nmodels: []\n", ["mergekit configuration", "amatax import r.yaml"]),
        ("models: {sft: ./a}\n", ["r.yaml:1 (models.rlhf)", "needed"]),
        (MODELS + "merge: {ratio: 0.4}\n", ["r.yaml:2 (merge.ratio)", "unknown key", "`ratios`"]),
        (
            "models: {sft: ./a, rlhf: ./b, others: [./c]}\n",
            ["r.yaml:1 (models.others)", "unknown key", "two tuned models are merged, no more"],
        ),
        (MODELS + "merge:\n  ratios: [0.4, high]\n", ["r.yaml:3 (merge.ratios[1])", "'high'"]),
        (MODELS + "merge:\n  ratios:\n    blocks: [0.4]\n    hed: 0\n", ["r.yaml:5 (merge.ratios.hed)", "`head`"]),
        (MODELS + "merge:\n  ratios: 1.4\n", ["r.yaml:3 (merge.ratios)", "outside 0..1", "extrapolate: true"]),
        (MODELS + "merge:\n  ratios: {blocks: [0.4], norms: -1}\n", ["(merge.ratios.norms)", "-1"]),
        (MODELS + "merge:\n  ratios: true\n", ["(merge.ratios)", "True"]),
        (MODELS + "merge:\n  ratios: '0.4'\n", ["(merge.ratios)", "'0.4'"]),
        (MODELS + "merge:\n  ratios: []\n", ["(merge.ratios)"]),
        (MODELS + "merge:\n  ratios: .nan\n", ["(merge.ratios)", "finite"]),
        (MODELS + "merge:\n  method: avrage\n", ["(merge.method)", "`average`"]),
        (MODELS + "merge:\n  density: 0.5\n  ratios: 1\n", ["r.yaml:3 (merge.density)", "unknown key"]),
        (MODELS + "merge:\n  ratios: [{layers: 0-a, ratio: 1}]\n", ["(merge.ratios[0].layers)", "0-7"]),
        (MODELS + "merge:\n  ratios: [{layers: 7-0, ratio: 1}]\n", ["(merge.ratios[0].layers)", "empty range"]),
        (MODELS + "merge:\n  ratios: [{layers: 0-7}]\n", ["(merge.ratios[0])", "one ratio"]),
        (MODELS + "merge:\n  ratios: [{layers: 0-7, attention: 1}]\n", ["(merge.ratios[0])", "attention"]),
        (MODELS + "merge:\n  ratios: [0.4, {layers: 0-7, ratio: 1}]\n", ["mixed"]),
        (MODELS + "merge:\n  ratios: {blocks: [1], overrides: [{ratio: 1}]}\n", ["overrides[0]", "which tensors"]),
        (MODELS + "output: {dtype: bf16}\n", ["(output.dtype)", "bfloat16"]),
        (MODELS + "output: {max_shard_size: big}\n", ["(output.max_shard_size)", "'big'"]),
        (MODELS + "output: {max_shard_size: 0}\n", ["(output.max_shard_size)"]),
        (MODELS + "output: {tokenizer: stf}\n", ["(output.tokenizer)", "`sft`"]),
        (MODELS + "merge: {ratios: 1}\nmerge: {ratios: 0}\n", ["r.yaml:3 (merge)", "twice", "line 2"]),
        ("models: {sft: a/b/c, rlhf: ./b}\n", ["(models.sft)", "Hub id"]),
        ("models: {sft: [1, rlhf: ./b}\n", ["r.yaml:1", "YAML"]),
        ("models: !!python/object/apply:os.system ['true']\n", ["YAML"]),
        (MODELS + "fit: {alpha: 2}\n", ["(fit.alpha)"]),
        (MODELS + "merge: {ratios: 1e-1}\n", ["(merge.ratios)", "as text", "0.1"]),
        (MODELS + "merge: {ratios: {blocks: [1], head: off}}\n", ["(merge.ratios.head)", "off"]),
    ],
)
def test_each_fault_says_where_and_what(text: str, words: list[str]) -> None:
    (message,) = faults(text)
    assert all(word in message for word in words), message


def test_all_faults_at_once() -> None:
    text = (
        "models: {sft: ./a, rlfh: ./b}\nmerge:\n  methd: average\n  ratios: [2, 0.5]\noutput: {dtype: int8}\nextra: 1\n"
    )
    found = "\n".join(faults(text))
    for key in ("(models.rlfh)", "(models.rlhf)", "(merge.methd)", "(output.dtype)", "(extra)"):
        assert key in found, found


def test_merge_keys_of_merge_keys_are_read_once() -> None:
    """2 to the power of 60 of them, if each was followed wherever it is named."""
    levels = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 61)]
    data, lines, found = read_yaml("\n".join(["a0: &a0 {}", *levels, "b: {<<: [*a60, &c {k: 1}], l: 2}", ""]), "r.yaml")
    assert not found
    assert data["b"] == {"k": 1, "l": 2}
    assert lines["b", "k"] == lines["b", "l"] == 62


def test_models_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("models: {sft: ../a, rlhf: acme/b@v1}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.models.sft == str(tmp_path.parent / "a")
    assert recipe.models.rlhf == "acme/b@v1"


def test_sizes_are_decimal() -> None:
    assert [parse_size(s) for s in ("5GB", "1.5 MB", "2GiB", "7", 7)] == [5 * 10**9, 1_500_000, 2 * 2**30, 7, 7]


def test_layers_are_inclusive() -> None:
    assert (parse_layers("0-7"), parse_layers("3"), parse_layers(3)) == (range(8), range(3, 4), range(3, 4))
