"""Ratios on real headers, tied embeddings, notes, and what the plan says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.errors import PlanError
from tests.conftest import Run, write_recipe


def ratios_of(folder: Path, ratios: object, **merge: object) -> dict[str, float]:
    planned = api.plan(write_recipe(folder, ratios, "r.yaml", **merge), folder / "out")
    return {name: tensor.ratio for name, tensor in planned.tensors.items()}


def test_the_paper_s_settings(siblings: Path) -> None:
    got = ratios_of(siblings, {"blocks": [0.7, 0.4, 0.1], "embeddings": 0, "norms": 0, "head": "mean"})
    assert got["model.layers.0.self_attn.q_proj.weight"] == 0.7
    assert got["model.layers.2.mlp.up_proj.weight"] == 0.4
    assert got["model.layers.5.mlp.down_proj.weight"] == 0.1
    assert got["model.layers.5.input_layernorm.weight"] == got["model.norm.weight"] == 0
    assert got["model.embed_tokens.weight"] == 0
    assert got["lm_head.weight"] == 0.4


def test_defaults(siblings: Path) -> None:
    got = ratios_of(siblings, [0.7, 0.4, 0.1])
    assert got["model.layers.0.input_layernorm.weight"] == 0.7
    assert got["model.norm.weight"] == got["model.embed_tokens.weight"] == got["lm_head.weight"] == 0.4


def test_one_number_is_plain_averaging(siblings: Path) -> None:
    assert set(ratios_of(siblings, 0.35).values()) == {0.35}


def test_explicit_blocks_groups_and_overrides(siblings: Path) -> None:
    got = ratios_of(
        siblings,
        {
            "blocks": [{"layers": "2-5", "ratio": 1}, {"layers": "0-1", "attention": 0.2, "mlp": 0.4}],
            "overrides": [{"match": "*.v_proj.*", "layers": "0-3", "ratio": 0.9}, {"layers": 3, "ratio": 0.05}],
        },
    )
    assert got["model.layers.1.self_attn.q_proj.weight"] == 0.2
    assert got["model.layers.1.mlp.up_proj.weight"] == 0.4
    assert got["model.layers.1.input_layernorm.weight"] == pytest.approx(0.3)
    assert got["model.layers.3.self_attn.v_proj.weight"] == 0.9
    assert got["model.layers.3.self_attn.q_proj.weight"] == 0.05
    assert got["model.layers.5.mlp.up_proj.weight"] == 1
    assert got["lm_head.weight"] == pytest.approx((0.2 + 0.4 + 1) / 3)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([0.1] * 7, ["7 ratios", "6 layers"]),
        ([{"layers": "0-3", "ratio": 1}], ["layers 4-5", "exactly once"]),
        ([{"layers": "0-3", "ratio": 1}, {"layers": "3-5", "ratio": 0}], ["layer 3", "blocks 0 and 1"]),
        ([{"layers": "0-6", "ratio": 1}], ["0-5"]),
        ({"blocks": [0.5], "overrides": [{"match": "*.mpl.*", "ratio": 1}]}, ["'*.mpl.*'", "no tensor"]),
    ],
)
def test_ratios_that_do_not_fit(siblings: Path, ratios: object, words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        ratios_of(siblings, ratios)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "r.yaml:" in str(caught.value)


def tie(
    folder: Path, *, drop_head: bool = True, flag: bool | None = True, roles: tuple[str, ...] = ("sft", "rlhf")
) -> None:
    """Make checkpoints tied: one matrix, or the same one twice."""
    for role in roles:
        tensors = {k: v for f in sorted((folder / role).glob("*.safetensors")) for k, v in load_file(f).items()}
        for file in (folder / role).glob("model*"):
            file.unlink()
        if drop_head:
            del tensors["lm_head.weight"]
        else:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / role / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / role / "config.json").read_text())
        config["tie_word_embeddings"] = flag
        (folder / role / "config.json").write_text(json.dumps(config))


SPLIT = {"blocks": [0.7, 0.1], "embeddings": 0, "head": 0.9}


def test_a_tied_matrix_counts_as_the_head(siblings: Path) -> None:
    tie(siblings)
    planned = api.plan(write_recipe(siblings, SPLIT), siblings / "out")
    assert planned.tensors["model.embed_tokens.weight"].ratio == 0.9
    assert any("counts as the head" in note for note in planned.notes)


def test_a_tied_matrix_on_disk_twice_stays_one(siblings: Path) -> None:
    tie(siblings, drop_head=False)
    api.merge(write_recipe(siblings, SPLIT), siblings / "out")
    merged = load_file(siblings / "out" / "model.safetensors")
    assert merged["lm_head.weight"].equal(merged["model.embed_tokens.weight"])
    assert json.loads((siblings / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_said_tied_but_different_are_two_matrices(siblings: Path) -> None:
    for role in ("sft", "rlhf"):
        path = siblings / role / "config.json"
        path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    result = api.merge(write_recipe(siblings, SPLIT), siblings / "out")
    assert result.plan.tensors["model.embed_tokens.weight"].ratio == 0
    assert json.loads((siblings / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_untied_without_a_head_is_written_as_tied(siblings: Path) -> None:
    tie(siblings, flag=False)
    api.merge(write_recipe(siblings, SPLIT), siblings / "out")
    assert json.loads((siblings / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("tied", ["sft", "rlhf"])
def test_one_tied_and_one_not_needs_a_word(siblings: Path, tied: str) -> None:
    from transformers import AutoModelForCausalLM

    before = {k: v for f in (siblings / tied).glob("*.safetensors") for k, v in load_file(f).items()}
    tie(siblings, roles=(tied,))
    with pytest.raises(PlanError, match="untie: true"):
        api.plan(write_recipe(siblings, SPLIT), siblings / "out")
    result = api.merge(write_recipe(siblings, {"blocks": [0.5]}, untie=True), siblings / "out")
    other = "rlhf" if tied == "sft" else "sft"
    theirs = {k: v for f in (siblings / other).glob("*.safetensors") for k, v in load_file(f).items()}["lm_head.weight"]
    merged = load_file(siblings / "out" / "model.safetensors")["lm_head.weight"]
    want = (before["model.embed_tokens.weight"].double() + theirs.double()) / 2
    assert (merged.double() - want).abs().max() < 1e-3
    assert result.plan.config_changes.get("tie_word_embeddings", False) is False
    _, info = AutoModelForCausalLM.from_pretrained(siblings / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_missing_prefix_is_matched_and_said(siblings: Path) -> None:
    tensors = {k: v for f in sorted((siblings / "rlhf").glob("*.safetensors")) for k, v in load_file(f).items()}
    for file in (siblings / "rlhf").glob("model*"):
        file.unlink()
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, siblings / "rlhf" / "model.safetensors")
    planned = api.plan(siblings / "recipe.yaml", siblings / "out")
    assert any("'model.'" in note for note in planned.notes)
    api.merge(siblings / "recipe.yaml", siblings / "out")
    assert set(load_file(siblings / "out" / "model.safetensors")) == set(tensors)


def test_different_dtypes_configs_and_tokenizers_are_noted(siblings: Path) -> None:
    config = json.loads((siblings / "rlhf" / "config.json").read_text())
    (siblings / "rlhf" / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    (siblings / "rlhf" / "tokenizer_config.json").write_text("{}")
    tensors = {k: v for f in sorted((siblings / "sft").glob("*.safetensors")) for k, v in load_file(f).items()}
    save_file({k: v.float() for k, v in tensors.items()}, siblings / "sft" / "model.safetensors", {"format": "pt"})
    notes = "\n".join(api.plan(siblings / "recipe.yaml", siblings / "out").notes)
    assert "F32 in sft and BF16 in rlhf" in notes
    assert "rope_theta" in notes
    assert "tokenizer_config.json" in notes


def test_dry_run_writes_nothing_and_is_complete(siblings: Path, amatax: Callable[..., Run]) -> None:
    before = sorted(p.name for p in siblings.iterdir())
    done = amatax("merge", "recipe.yaml", "out", "--dry-run")
    assert done.code == 0, done.err
    for word in ("block 2", "layers 4-5", "0.7", "reads", "writes", "memory", "output", "head"):
        assert word in done.out
    plan = amatax("merge", "recipe.yaml", "out", "--dry-run", "--json").json
    assert len(plan["tensors"]) == 57
    assert plan["writes"] == sum(plan["shards"].values())
    assert sorted(p.name for p in siblings.iterdir()) == before


def test_no_ratios_is_a_fault_of_the_plan_not_of_the_recipe(siblings: Path, amatax: Callable[..., Run]) -> None:
    (siblings / "r.yaml").write_text(yaml.safe_dump({"models": {"sft": "./sft", "rlhf": "./rlhf"}}))
    assert amatax("check", "r.yaml").code == 0
    done = amatax("merge", "r.yaml", "out")
    assert done.code == 2
    assert "merge.ratios" in done.err


def test_both_inputs_that_cannot_be_opened_are_said_at_once(siblings: Path, amatax: Callable[..., Run]) -> None:
    for role in ("sft", "rlhf"):
        shutil.rmtree(siblings / role)
    done = amatax("merge", "recipe.yaml", "out")
    assert done.code == 2
    assert done.err.count("no such folder") == 2
    assert "recipe.yaml:2 (models.sft)" in done.err
