"""What a recipe or a file asks to be measured, and everything that can be wrong with it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amatax.errors import FaultsError, MeasureError, RecipeError
from amatax.evaluation.declared import Declared, declared_measures
from amatax.publishing.staging import without_paths
from amatax.recipes.loading import dump_recipe, load_recipe, parse_recipe
from amatax.recipes.measures import load_measures, wishes_of
from tests.conftest import Run

RECIPE = "models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 0.4}\n"


def declared(tmp_path: Path, text: str) -> list[Declared]:
    file = tmp_path / "measures.yaml"
    file.write_text(text)
    return declared_measures(load_measures(file))


def faults(tmp_path: Path, text: str) -> str:
    with pytest.raises(FaultsError) as caught:
        declared(tmp_path, text)
    return str(caught.value)


def test_options_have_defaults_and_data_stands_beside_the_file(tmp_path: Path) -> None:
    (one,) = declared(tmp_path, "abilities: {measure: exact_match, data: data/a.jsonl, max_new_tokens: 16}\n")
    assert (one.name, one.kind, one.higher, one.data) == ("abilities", "exact_match", True, tmp_path / "data/a.jsonl")
    assert one.options == {
        "normalise": "none",
        "raw": False,
        "where": None,
        "max_new_tokens": 16,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
    }


def test_a_length_may_say_which_way_is_better(tmp_path: Path) -> None:
    text = "short: {measure: length, data: a, higher: false}\nany: {measure: length, data: a}\n"
    assert [one.higher for one in declared(tmp_path, text)] == [False, None]


@pytest.mark.parametrize("wrap", ["", "measures:\n  ", RECIPE + "measures:\n  "])
def test_bare_or_under_the_key_or_in_a_recipe(tmp_path: Path, wrap: str) -> None:
    (one,) = declared(tmp_path, wrap + "tax: {measure: kl, data: keep.jsonl}\n")
    assert (one.kind, one.data) == ("kl", tmp_path / "keep.jsonl")
    lines = wrap.count("\n") + 1
    assert one.where == f"{tmp_path / 'measures.yaml'}:{lines} (measures.tax)"


def test_a_measure_may_be_called_measures(tmp_path: Path) -> None:
    assert declared(tmp_path, "measures: {measure: length, data: a}\n")[0].name == "measures"


def test_a_recipe_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE + "measures: {tax: {measure: kl, data: keep.jsonl, seed: 3}}\n")
    recipe = load_recipe(file)
    assert wishes_of(recipe).folder == tmp_path
    assert wishes_of(recipe).sft == str(tmp_path / "sft")
    again = parse_recipe(dump_recipe(recipe), "again", tmp_path)
    assert again == recipe
    assert again.measures["tax"].options == {"seed": 3}


def test_every_fault_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        "a: {measure: exact_mach, data: a.jsonl}\n"
        "b: {measure: nll}\n"
        "c: {measure: nll, data: a.jsonl, higher: true}\n"
        "d: {measure: f1, data: a.jsonl, normalise: case}\n"
        "e: {measure: exact_match, data: a.jsonl, normalise: upper, max_new_tokens: 0}\n"
        "f: {measure: reward, data: a.jsonl, modle: ./rm}\n"
    )
    said = faults(tmp_path, text)
    for line, words in (
        (1, "no measure 'exact_mach'\n  -> did you mean `exact_match`?"),
        (2, "this key is needed\n  -> add `data:`"),
        (3, "of nll less is better, always"),
        (4, "unknown key"),
        (5, "not 'upper'"),
        (5, "greater than or equal to 1, not 0"),
        (6, "unknown key\n  -> did you mean `model`?"),
    ):
        assert any(f"measures.yaml:{line} " in part and words in part for part in said.split(str(tmp_path) + "/")), (
            words
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("- nll\n", "no mapping of measures"),
        ("tax: nll\n", "(measures.tax)"),
        ("1x: {measure: nll, data: a}\n", "measures.1x"),
        ("tax: {data: a}\n", "measures.tax.measure): this key is needed"),
        ("tax: {measure: nll, data: a, higher: maybe}\n", "not 'maybe'"),
        ("a: {measure: nll, data: a}\na: {measure: kl, data: a}\n", "this key stands twice"),
        (RECIPE, "the recipe has no `measures`"),
        ("a: {measure: [\n", "not valid YAML"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    assert words in faults(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="No such file"):
        load_measures(tmp_path / "nope.yaml")


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    gone = ("sacrebleu", "lm_eval")
    monkeypatch.setattr("amatax.evaluation.declared.find_spec", lambda n: None if n in gone else find(n))
    said = faults(tmp_path, "b: {measure: bleu, data: a}\nt: {measure: lm_eval, task: arc_easy}\n")
    assert "bleu needs sacrebleu" in said
    assert 'pip install "amatax[evaluate]"' in said
    assert "lm_eval needs lm_eval" in said
    assert 'pip install "amatax[lm-eval]"' in said


def test_a_task_has_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amatax.evaluation.declared.find_spec", lambda name: True)  # whether it is installed or not
    (one,) = declared(tmp_path, "arc: {measure: lm_eval, task: arc_easy, metric: acc_norm, limit: 200}\n")
    assert (one.data, one.higher, one.options["limit"], one.options["seed"]) == (None, None, 200, 1234)
    said = faults(tmp_path, "arc: {measure: lm_eval, data: a.jsonl}\n")
    assert "(measures.arc.data): lm_eval takes no data" in said
    assert "(measures.arc.task): this key is needed" in said


def test_check_looks_at_them_and_the_schema_knows_them(amatax: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "measures: {tax: {measure: kll, data: keep.jsonl}}\n")
    done = amatax("check", "r.yaml")
    assert done.code == 2
    assert "r.yaml:3 (measures.tax.measure): there is no measure 'kll'\n  -> did you mean `kl`?" in done.err
    measure = json.loads(amatax("schema").out)["$defs"]["Measure"]
    assert "exact_match" in measure["properties"]["measure"]["enum"]
    assert {"normalise", "per", "unit", "model", "max_new_tokens"} <= set(measure["properties"])


def test_a_recipe_itself_is_as_strict(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"measures\.tax\.data"):
        parse_recipe(RECIPE + "measures: {tax: {measure: kl, data: 3}}\n", "r.yaml", tmp_path)


def test_what_is_published_names_no_path(tmp_path: Path) -> None:
    text = RECIPE + "measures: {r: {measure: reward, data: /home/me/open.jsonl, model: ~/models/judge}}\n"
    public = without_paths(parse_recipe(text, "r.yaml", tmp_path)).measures["r"]
    assert (public.data, public.options) == ("open.jsonl", {"model": "./judge"})
