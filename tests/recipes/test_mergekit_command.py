"""amatax import: folders, files and messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from amatax import api
from amatax.errors import OutputError
from amatax.recipes.loading import load_recipe
from tests.conftest import Run
from tests.test_boundaries import heavy_imports

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
