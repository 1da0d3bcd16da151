"""amatax inspect of adapters that PEFT made, alone and in a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.adapters import lora, save_adapter, save_model, small_llama
from tests.faults.breaking import amatax_here, assert_clear, edit_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters on it, and a recipe that has one."""
    folder = tmp_path_factory.mktemp("adapters")
    model = save_model(folder / "model", small_llama())
    save_adapter(model, lora("q_proj", "v_proj", use_rslora=True, use_dora=True), folder / "lora")
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "modules_to_save": ["lm_head"]}
    save_adapter(model, lora("q_proj", "v_proj", **patterns), folder / "other")
    recipe = "models: {sft: ./model, rlhf: {model: ./model, adapter: ./lora}}\nmerge: {ratios: 0.5}\n"
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def test_an_adapter_alone(made: Path) -> None:
    """Rank, alpha, modules and bytes, as PEFT wrote them; of each target A, B and magnitudes, in two layers: 2 (360 + 260) numbers."""
    done = amatax_here("inspect", made / "lora")
    assert done.code == 0, done.err
    size = (made / "lora" / "adapter_model.safetensors").stat().st_size
    assert "LoRA (rank-stabilised, DoRA)" in done.out
    assert "rank 4, alpha 6: a scale of 3\n" in done.out  # 6 / sqrt(4)
    (targets,) = (line for line in done.out.splitlines() if line.startswith("target modules: "))
    assert set(targets.removeprefix("target modules: ").split(", ")) == {"q_proj", "v_proj"}
    assert f"12 tensors, 1,240 parameters, {size / 1e3:.2f} kB in adapter_model.safetensors" in done.out
    found = json.loads(amatax_here("inspect", made / "lora", "--json").out)
    assert (found["rank"], found["alpha"], found["scale"], found["rslora"], found["dora"]) == (4, 6, 3.0, True, True)
    assert sorted(found["target_modules"]) == ["q_proj", "v_proj"]
    assert found["bytes"] == size and len(found["tensors"]) == 12 and found["faults"] == []


def test_patterns_and_modules_saved_whole(made: Path) -> None:
    done = amatax_here("inspect", made / "other")
    assert done.code == 0, done.err
    assert "rank 4, alpha 6: a scale of 1.5\n  rank 2 of q_proj\n  alpha 3 of v_proj\n" in done.out
    assert "saved whole: lm_head\n" in done.out
    listed = amatax_here("inspect", made / "other", "--names").out.splitlines()
    assert len(listed) == 9
    assert any(line.endswith("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight") for line in listed)


def test_a_recipe_with_an_adapter(made: Path) -> None:
    done = amatax_here("inspect", made / "recipe.yaml")
    assert done.code == 0, done.err
    sft, rlhf = done.out.split("\n\nrlhf:\n")
    assert sft.startswith("sft:\n") and "rank" not in sft and "2 layers" in sft
    assert "rank 4, alpha 6" in rlhf and "it changes 4 tensors of\n" in rlhf and "2 layers" in rlhf
    found = json.loads(amatax_here("inspect", made / "recipe.yaml", "--json").out)
    assert found["rlhf"]["adapter"]["rank"] == 4 and "adapter" not in found["sft"]
    assert found["rlhf"]["tensors"].keys() == found["sft"]["tensors"].keys()


def test_what_no_merge_can_use_is_shown_and_said(made: Path, tmp_path: Path) -> None:
    """With what a terminal would obey as text."""
    done = amatax_here("inspect", _copy(made, tmp_path / "one", peft_type="VERA", target_modules="q\x1b[2J.*"))
    assert done.code == 0, done.err
    assert "an adapter of the type VERA" in done.out and "no merge can use it: is of the type 'VERA'" in done.out
    assert "\x1b" not in done.out and "\\x1b[2J" in done.out
    done = amatax_here("inspect", _copy(made, tmp_path / "two", r=10**400, target_modules=None))
    assert done.code == 0, done.err
    assert "target modules: PEFT's own" in done.out


def _copy(made: Path, folder: Path, **changes: object) -> Path:
    folder.mkdir()
    for path in (made / "lora").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_json(folder / "adapter_config.json", **changes)
    return folder


def test_faults(made: Path, tmp_path: Path) -> None:
    """An adapter without its weights, a recipe whose adapter is not there, and two of which one is an adapter."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    (tmp_path / "r.yaml").write_text((made / "recipe.yaml").read_text().replace("./model", str(made / "model")))
    for arguments, words in (
        ([tmp_path / "empty"], "no adapter_model.safetensors"),
        ([tmp_path / "r.yaml"], "lora"),
        ([tmp_path / "none.yaml"], "none.yaml"),
        ([made / "lora", made / "model"], "a LoRA adapter, not a whole model"),
    ):
        answer = amatax_here("inspect", *arguments)
        assert_clear(answer)
        assert words in answer.err
