"""A finished folder and other inputs, damage, and files of the user's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.errors import PlanError
from tests.conftest import Run, write_recipe


def other_step(folder: Path) -> None:
    """Another step of the same training run: the same header, other values."""
    file = folder / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_a_link_that_was_turned_is_noticed(siblings: Path, amatax: Callable[..., Run]) -> None:
    runs = siblings / "runs"
    runs.mkdir()
    shutil.move(siblings / "sft", runs / "step-100")
    shutil.copytree(runs / "step-100", runs / "step-200")
    other_step(runs / "step-200")
    (siblings / "sft").symlink_to(runs / "step-100")
    assert amatax("merge", "recipe.yaml", "out").code == 0
    (siblings / "sft").unlink()
    (siblings / "sft").symlink_to(runs / "step-200")
    done = amatax("merge", "recipe.yaml", "out")
    assert done.code == 2
    assert "changed since" in done.err or "another merge" in done.err


def test_overwrite_mends_a_damaged_folder(siblings: Path, amatax: Callable[..., Run]) -> None:
    assert amatax("merge", "recipe.yaml", "out").code == 0
    file = siblings / "out" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert amatax("verify", "out").code == 2
    assert amatax("merge", "recipe.yaml", "out", "--overwrite").code == 0
    assert amatax("verify", "out").code == 0


def test_overwrite_keeps_the_user_s_files(siblings: Path, amatax: Callable[..., Run]) -> None:
    assert amatax("merge", "recipe.yaml", "out").code == 0
    (siblings / "out" / "my_eval").mkdir()
    (siblings / "out" / "my_eval" / "scores.csv").write_text("1")
    done = amatax("merge", "recipe.yaml", "out", "--overwrite")
    assert done.code == 2
    assert "my_eval" in done.err
    assert (siblings / "out" / "my_eval" / "scores.csv").exists()


def test_integers_in_one_model_only_are_refused(siblings: Path) -> None:
    file = siblings / "sft" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PlanError, match=r"integers in one model only.*model\.norm\.weight"):
        api.plan(siblings / "recipe.yaml", siblings / "out")


def test_an_override_that_parts_a_tied_pair_unties_it(siblings: Path) -> None:
    import json

    for role in ("sft", "rlhf"):
        tensors = {k: v for f in sorted((siblings / role).glob("*.safetensors")) for k, v in load_file(f).items()}
        for file in (siblings / role).glob("model*"):
            file.unlink()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, siblings / role / "model.safetensors", {"format": "pt"})
        config = json.loads((siblings / role / "config.json").read_text())
        (siblings / role / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    recipe = write_recipe(siblings, {"blocks": [0.5], "overrides": [{"match": "lm_head*", "ratio": 0.9}]})
    api.merge(recipe, siblings / "out")
    assert json.loads((siblings / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_recipe_object_and_a_mapping_with_paths(siblings: Path) -> None:
    import amatax

    before = torch.get_num_threads()
    mapping = {"models": {"sft": siblings / "sft", "rlhf": siblings / "rlhf"}, "merge": {"ratios": [0.7, 0.4, 0.1]}}
    amatax.merge(mapping, siblings / "one")
    recipe = amatax.Recipe.model_validate(
        {"models": {"sft": str(siblings / "sft"), "rlhf": str(siblings / "rlhf")}, "merge": {"ratios": [0.7, 0.4, 0.1]}}
    )
    amatax.merge(recipe, siblings / "two")
    assert (siblings / "one" / "model.safetensors").read_bytes() == (
        siblings / "two" / "model.safetensors"
    ).read_bytes()
    assert torch.get_num_threads() == before
    with pytest.raises(amatax.AmataxError, match=r"outside 0\.\.1"):
        amatax.plan(
            recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"ratios": 5.0})}), siblings / "x"
        )
