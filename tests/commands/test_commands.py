"""The small commands, and what every command has in common."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Run


def test_help_and_version(amatax: Callable[..., Run]) -> None:
    assert amatax("--version").out.startswith("amatax ")
    for command in ("merge", "inspect", "verify", "check", "import", "recipes", "schema", "methods"):
        assert command in amatax("--help").out
        assert amatax(command, "--help").code == 0


def test_unknown_options_are_the_user_s_fault(amatax: Callable[..., Run]) -> None:
    assert amatax("merge", "--nope").code == 2
    assert amatax("mrege").code == 2


def test_a_device_that_is_not_there(siblings: Path, amatax: Callable[..., Run]) -> None:
    for device in ("tpu", "cuda:99"):
        done = amatax("merge", "recipe.yaml", "out", "--device", device)
        assert done.code == 2
        assert f"--device {device}" in done.err
    assert not list(siblings.glob("out*"))


def test_no_output_named(siblings: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("merge", "recipe.yaml")
    assert done.code == 2
    assert "output" in done.err


def test_output_path_of_the_recipe_is_relative_to_the_working_directory(
    siblings: Path, amatax: Callable[..., Run]
) -> None:
    (siblings / "deep").mkdir()
    text = (siblings / "recipe.yaml").read_text().replace("./", "../") + "output: {path: made/here}\n"
    (siblings / "deep" / "r.yaml").write_text(text)
    done = amatax("merge", "deep/r.yaml", "--json")
    assert done.code == 0, done.err
    assert done.json["output"] == "made/here"
    assert (siblings / "made" / "here" / "config.json").exists()


def test_quiet_prints_nothing(siblings: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("merge", "recipe.yaml", "out", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_the_summary_says_what_to_do_next(siblings: Path, amatax: Callable[..., Run]) -> None:
    out = amatax("merge", "recipe.yaml", "out").out
    for words in ("merged into out", "block 2", "from_pretrained", "amatax verify out", "rounding"):
        assert words in out


def test_schema_is_a_json_schema_that_knows_every_key(amatax: Callable[..., Run]) -> None:
    schema = amatax("schema").json
    assert set(schema["properties"]) == {"models", "merge", "output", "fit", "measures", "record"}
    assert {"blocks", "head", "embeddings", "norms", "other", "overrides"} == set(
        schema["$defs"]["Ratios"]["properties"]
    )
    merge = schema["$defs"]["Merge"]
    assert {"method", "ratios", "vocabulary", "density", "gamma", "epsilon", "scale", "seed"} < set(merge["properties"])
    assert merge["properties"]["density"]["maximum"] == 1
    assert "ties (default 0.5)" in merge["properties"]["density"]["description"]
    assert {"average", "ties"} < set(merge["properties"]["method"]["enum"])
    assert merge["additionalProperties"] is False


def test_methods(amatax: Callable[..., Run]) -> None:
    assert "average" in amatax("methods").out


def test_check_json_shows_what_was_understood(siblings: Path, amatax: Callable[..., Run]) -> None:
    assert amatax("check", "recipe.yaml", "--json").json["merge"]["ratios"] == [0.7, 0.4, 0.1]


def test_inspect(siblings: Path, amatax: Callable[..., Run]) -> None:
    out = amatax("inspect", "rlhf").out
    for words in ("LlamaForCausalLM", "6 layers", "model.layers", "backbone", "BF16", "attention", "mlp"):
        assert words in out
    listed = amatax("inspect", "rlhf", "--names").out
    assert len(listed.splitlines()) == 57
    assert amatax("inspect", "./rlhf", "--json").json["tensors"]["model.norm.weight"]["kind"] == "norm"


def test_inspect_two(siblings: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("inspect", "sft", "rlhf", "--json")
    sft, rlhf = (
        {k: v.double() for f in sorted((siblings / role).glob("*.safetensors")) for k, v in load_file(f).items()}
        for role in ("sft", "rlhf")
    )
    name = "model.layers.1.self_attn.q_proj.weight"
    want = torch.linalg.norm(rlhf[name] - sft[name]) / torch.linalg.norm(sft[name])
    assert math.isclose(done.json["tensors"][name], want, rel_tol=1e-6)
    group = next(g for g in done.json["groups"] if (g["layer"], g["kind"]) == (1, "attention"))
    names = [n for n in sft if n.startswith("model.layers.1.self_attn")]
    change = sum((rlhf[n] - sft[n]).square().sum() for n in names)
    assert math.isclose(group["relative"], math.sqrt(change / sum(sft[n].square().sum() for n in names)), rel_tol=1e-6)
    assert "█" in amatax("inspect", "sft", "rlhf").out
    same = amatax("inspect", "sft", "sft", "--json").json
    assert same["relative"] == 0


@pytest.mark.parametrize(
    "command", [["merge", "nothere.yaml"], ["check", "nothere"], ["inspect", "./nothere"], ["verify", "nothere"]]
)
def test_what_is_not_there(amatax: Callable[..., Run], command: list[str]) -> None:
    done = amatax(*command)
    assert done.code == 2
    assert "nothere" in done.err
    assert "->" in done.err
    assert "Traceback" not in done.err


def test_result_as_json(siblings: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("merge", "recipe.yaml", "out", "--json")
    result = json.loads(done.out)
    assert result["bytes"] == (siblings / "out" / "model.safetensors").stat().st_size
    assert result["already_finished"] is False
    assert amatax("merge", "recipe.yaml", "out", "--json").json["already_finished"] is True
