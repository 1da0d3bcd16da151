"""Every ready recipe is valid, plans and merges the family; the family is what its README says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amatax import api
from amatax.recipes.gallery import describe, gallery, gallery_folder
from tests.conftest import Run


@pytest.mark.parametrize("name", sorted(gallery()))
def test_every_recipe_merges(name: str, tmp_path: Path) -> None:
    assert len(describe(gallery()[name])) > 20
    result = api.merge(gallery()[name], tmp_path / "out")
    assert result.plan.model.layers == 9
    assert api.verify(tmp_path / "out").good


def test_the_part_recipes_average_one_part(tmp_path: Path) -> None:
    for part, index in (("input", 0), ("middle", 1), ("output", 2)):
        planned = api.plan(gallery()[f"average-{part}"], tmp_path / "out")
        for tensor in planned.tensors.values():
            inside = tensor.place.layer is not None and tensor.place.layer // 3 == index and tensor.place.kind != "norm"
            assert (tensor.ratio == 1) != inside, tensor.name


def test_the_quickstart_loads_and_answers(tmp_path: Path, amatax: Callable[..., Run]) -> None:
    assert amatax("merge", "quickstart", "out").code == 0
    done = amatax("verify", "out", "--load", "--prompt", "What is 12 + 35?", "--json")
    assert done.code == 0, done.err
    assert len(done.json["answer"]) > 0


def test_the_family_is_small_and_real() -> None:
    family = gallery_folder() / "family"
    assert sum(p.stat().st_size for p in family.rglob("*") if p.is_file() and "__pycache__" not in p.parts) < 12_000_000
    for role in ("base", "sft", "rlhf"):
        one = api.inspect(family / role)
        assert one.checkpoint.config["architectures"] == ["LlamaForCausalLM"]
        assert one.model.layers == 9
        assert {entry.dtype for entry in one.checkpoint.tensors.values()} == {"BF16"}
    for data in (family / "data").glob("*.jsonl"):
        for line in data.read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["prompt"]


def test_recipes_lists_and_shows(amatax: Callable[..., Run]) -> None:
    listed = amatax("recipes").out
    assert all(name in listed for name in gallery())
    assert amatax("recipes", "ama").out == gallery()["ama"].read_text(encoding="utf-8")
    assert amatax("recipes", "nope").code == 2
