"""A fitted recipe: the numbers are filled in, and everything else stays as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from amatax.fitting.filling import fill_in
from amatax.recipes.loading import parse_recipe
from amatax.recipes.schema import Block, Ratios

MODELS = "models:\n  sft: ./a   # before\n  rlhf: ../b  # after\n"
RATIOS = Ratios(blocks=[0.7, 1e-06, 0.5])
CASES = {
    "a number": MODELS + "merge:\n  ratios: 0.4  # uniform\n",
    "a list": MODELS + "merge:\n  method: average\n  ratios: [0.1, 0.2]  # two\n",
    "a list in lines": MODELS
    + "merge:\n  ratios:\n  - 0.1  # one\n  - 0.2\n  # the end\noutput: {dtype: float32}  # wide\n",
    "a mapping": MODELS + "merge:\n  ratios:\n    # the blocks\n    blocks: [0.1, 0.2]\n    head: mean  # stays\n",
    "a flow mapping": MODELS + "merge: {ratios: {blocks: [0.1], norms: block}}  # flow\n",
    "no ratios": MODELS + "merge:\n  method: average  # the only one\n",
    "an empty merge": MODELS + "merge: {}\n# end\n",
    "no merge": MODELS + "output: {path: out}  # here\n",
    "a record": MODELS + "merge: {ratios: 0.5}\nrecord: {sweep: 3}\n",
    "an old fit": MODELS + "merge: {ratios: 0.5}\nrecord:\n  fit:\n    alpha: 0.1\n",
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ratios", [RATIOS, Ratios(blocks=[0.25], head=0.125)], ids=["list", "free head"])
def test_the_rest_stays(name: str, ratios: Ratios, tmp_path: Path) -> None:
    text = CASES[name]
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    filled = fill_in(text, recipe, ratios, {"alpha": 0.4}, tmp_path / "r.yaml", tmp_path / "fitted.yaml")
    parsed = parse_recipe(filled, "fitted.yaml", tmp_path)
    assert parsed.merge.resolved_ratios() == ratios
    assert parsed.models == recipe.models
    assert parsed.output == recipe.output
    assert parsed.record == {**recipe.record, "fit": {"alpha": 0.4}}
    inside = {"# one"}  # a comment in the list that is replaced
    comments = {"#" + line.partition("#")[2] for line in text.splitlines() if "#" in line}
    for comment in comments - inside:
        assert comment in filled, filled


def test_groups(tmp_path: Path) -> None:
    ratios = Ratios(blocks=[Block(layers="0-1", attention=0.1, mlp=0.3), Block(layers="2-3", attention=0.5, mlp=0.7)])
    text = CASES["a mapping"]
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    filled = fill_in(text, recipe, ratios, {}, tmp_path / "r.yaml", tmp_path / "f.yaml")
    assert parse_recipe(filled, "f.yaml", tmp_path).merge.resolved_ratios() == ratios
    assert "# the blocks" in filled


def test_paths_follow_the_recipe_to_its_new_place(tmp_path: Path) -> None:
    text = MODELS + "merge: {ratios: 0.5}\nfit: {data: d.jsonl, holdout: h.jsonl}\n"
    text += "measures:\n  nice: {measure: reward, data: p.jsonl, model: ./judge}\n  hub: {measure: reward, data: p.jsonl, model: a/b}\n"
    (tmp_path / "deep").mkdir()
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    target = tmp_path / "deep" / "f.yaml"
    filled = fill_in(text, recipe, RATIOS, {}, tmp_path / "r.yaml", target)
    parsed = parse_recipe(filled, "f.yaml", target.parent)
    assert parsed.models == recipe.models
    assert parsed.fit.data == "../d.jsonl"
    assert parsed.fit.holdout == "../h.jsonl"
    assert [(m.data, (m.model_extra or {})["model"]) for m in parsed.measures.values()] == [
        ("../p.jsonl", "../judge"),
        ("../p.jsonl", "a/b"),
    ]
    assert "# before" in filled


def test_paths_of_a_text_that_is_written_anew(tmp_path: Path) -> None:
    text = "{models: &m {sft: ./a, rlhf: ./b}, merge: {ratios: 0.5}, measures: {n: {measure: nll, data: p.jsonl}}}"
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "f.yaml"
    filled = fill_in(text, parse_recipe(text, "r.yaml", tmp_path), RATIOS, {}, tmp_path / "r.yaml", target)
    assert parse_recipe(filled, "f.yaml", target.parent).measures["n"].data == str(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        "{models: &m {sft: ./a, rlhf: ./b}, merge: {ratios: 0.5}}",
        MODELS + "merge: {ratios: 0.5}\n...\n",
        "  " + MODELS.replace("\n", "\n  ") + "merge: {ratios: 0.5}\n",
        MODELS + "merge:\n  ? ratios\n  : [0.5]\n",
        MODELS + "merge: {ratios: &r [0.5]}\nrecord: {old: *r}\n",
    ],
    ids=["flow", "end mark", "indented", "question mark", "anchor"],
)
def test_text_that_cannot_be_edited_is_written_anew(tmp_path: Path, text: str) -> None:
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    filled = fill_in(text, recipe, RATIOS, {"alpha": 0.4}, tmp_path / "r.yaml", tmp_path / "f.yaml")
    parsed = parse_recipe(filled, "f.yaml", tmp_path)
    assert parsed.merge.resolved_ratios() == RATIOS
    assert parsed.models == recipe.models
    assert parsed.record["fit"] == {"alpha": 0.4}


def test_a_record_may_hold_a_date(tmp_path: Path) -> None:
    text = MODELS + "merge: {ratios: 0.5}\nrecord: {when: 2024-01-01}\n"
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    filled = fill_in(text, recipe, RATIOS, {"alpha": 0.4}, tmp_path / "r.yaml", tmp_path / "f.yaml")
    assert parse_recipe(filled, "f.yaml", tmp_path).record == {**recipe.record, "fit": {"alpha": 0.4}}


def test_comments_in_a_list_of_as_many_stay(tmp_path: Path) -> None:
    for head in ("ratios:", "ratios:\n    blocks:"):
        text = (
            MODELS + f"merge:\n  {head}\n    - 0.1  # near the input\n    # in between\n    - 0.2\n    - 0.3  # last\n"
        )
        recipe = parse_recipe(text, "r.yaml", tmp_path)
        filled = fill_in(text, recipe, RATIOS, {"alpha": 0.4}, tmp_path / "r.yaml", tmp_path / "fitted.yaml")
        assert "- 0.7  # near the input\n    # in between\n    - 0.000001000000\n    - 0.5  # last\n" in filled
        assert parse_recipe(filled, "fitted.yaml", tmp_path).merge.resolved_ratios() == RATIOS
