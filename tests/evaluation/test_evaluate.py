"""`amatax evaluate` through its command: the family's own figures, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amatax import api
from amatax.errors import AmataxError
from tests.conftest import Run
from tests.fitting.family import FAMILY, REWARD

ABILITIES = ("facts", "reading", "translation", "addition")
Amatax = Callable[..., Run]


def write_measures(folder: Path, measures: dict[str, Any], lines: int | None = None) -> None:
    """measures.yaml, and the family's data beside it."""
    (folder / "data").mkdir()
    for name in ("abilities", "open", "keep"):
        whole = (FAMILY / "data" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / "data" / f"{name}.jsonl").write_text("".join(whole[:lines]))
    (folder / "measures.yaml").write_text(json.dumps(measures))


def exact(**more: Any) -> dict[str, Any]:
    return {"measure": "exact_match", "data": "data/abilities.jsonl", "max_new_tokens": 16, **more}


def test_the_familys_own_figures(amatax: Amatax, tmp_path: Path) -> None:
    measures = {name: exact(where={"ability": name}) for name in ABILITIES} | {"abilities": exact()}
    measures["reward"] = {"measure": "reward", "data": "data/open.jsonl", "max_new_tokens": 96}
    write_measures(tmp_path, measures)
    models = {role: str(FAMILY / role) for role in ("sft", "rlhf")}
    options = ("--measures", "measures.yaml", "--reward", REWARD, "--batch-size", "200", "--device", "cpu", "--json")
    done = amatax("evaluate", *models.values(), *options)
    assert done.code == 0, done.err
    known = json.loads((FAMILY / "measured.json").read_text())["models"]
    points = {point["name"]: point["measured"] for point in done.json["points"]}
    for role, name in models.items():
        for measure, found in points[name].items():
            assert found["value"] == pytest.approx(known[role][measure]["mean"], abs=1e-4), (role, measure)
            if measure != "abilities":  # there its file weighs four means alike
                assert found["error"] == pytest.approx(known[role][measure]["error"], abs=1e-4), (role, measure)
    assert done.json["measures"]["reward"]["higher"] is True


def test_a_table_and_a_file_of_every_sample(amatax: Amatax, tmp_path: Path) -> None:
    measures = {"abilities": exact(), "tax": {"measure": "kl", "data": "data/keep.jsonl"}}
    measures["size"] = {"measure": "length", "data": "data/abilities.jsonl", "max_new_tokens": 16}
    write_measures(tmp_path, measures, lines=6)
    shutil.copytree(FAMILY / "rlhf", tmp_path / "mine")
    options = ("--measures", "measures.yaml", "--sft", FAMILY / "sft", "-o", "results.jsonl")
    done = amatax("evaluate", "mine", FAMILY / "sft", *options)
    assert done.code == 0, done.err
    head, first, second, last = done.out.splitlines()
    assert head.split() == ["abilities", "↑", "tax", "↓", "size"]
    assert first.startswith("mine ")
    assert second.split()[3:5] == ["0.000", "±0.000"]  # of SFT from SFT
    assert last.endswith("samples: abilities 6, tax 6, size 6")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 3 * 6
    mine = [line for line in lines if line["point"] == "mine" and line["measure"] == "abilities"]
    assert [line["sample"] for line in mine] == ["1", "2", "3", "4", "5", "6"]
    rows = [json.loads(line) for line in (tmp_path / "data" / "abilities.jsonl").open()]
    for row, line in zip(rows, mine, strict=True):
        assert line["sums"] == [float(line["response"].strip() == row["response"]), 1.0]
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_recipe_of_measures_names_what_they_are_against(amatax: Amatax, tmp_path: Path) -> None:
    write_measures(tmp_path, {}, lines=4)
    models = {role: str(FAMILY / role) for role in ("sft", "rlhf")}
    measures = {"tax": {"measure": "kl", "data": "data/keep.jsonl"}}
    (tmp_path / "r.yaml").write_text(json.dumps({"models": models, "merge": {"ratios": 0.5}, "measures": measures}))
    done = amatax("evaluate", FAMILY / "sft", "--measures", "r.yaml", "--json")
    assert done.code == 0, done.err
    assert done.json["points"][0]["measured"]["tax"]["value"] == pytest.approx(0, abs=1e-7)


def test_one_sample_has_no_error(amatax: Amatax, tmp_path: Path) -> None:
    write_measures(tmp_path, {"a": exact()}, lines=1)
    done = amatax("evaluate", FAMILY / "sft", "--measures", "measures.yaml", "--json")
    assert done.json["points"][0]["measured"]["a"] == {"value": 1.0, "error": None, "samples": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sft"], "nothing is to be measured"),
        (["sft", "--measures", "nope.yaml"], "nope.yaml: cannot be read as text: No such file"),
        (["sft", "--measures", "measures.yaml", "--reward", "x.py:f"], "no measure takes it"),
        (["sft", "--measures", "kl.yaml"], "kl needs the SFT model\n  -> evaluate a recipe, or name it with --sft"),
        (["sft", "--measures", "measures.yaml", "-o", "no/such/r.jsonl"], "no such folder"),
        (["sft", "--measures", "measures.yaml", "-o", "data"], "data is a folder"),
        (["nonsense", "--measures", "measures.yaml", "-o", "x" * 250], "name too long"),  # not after hours of measuring
        (["sft", "--measures", "system.yaml"], "pass --raw (of a measure, `raw: true`)"),
        (["sft", "--measures", "measures.yaml", "--device", "tpu"], "no such device"),
        (["nonsense", "--measures", "measures.yaml"], "nonsense: no such recipe, folder or Hub id"),
        (["./nowhere", "--measures", "measures.yaml"], "nowhere"),
        (["data", "--measures", "measures.yaml"], "data"),
    ],
)
def test_what_is_refused(amatax: Amatax, tmp_path: Path, arguments: list[str], words: str) -> None:
    write_measures(tmp_path, {"a": exact()}, lines=2)
    (tmp_path / "kl.yaml").write_text("tax: {measure: kl, data: data/keep.jsonl}\n")
    (tmp_path / "system.yaml").write_text("a: {measure: length, data: system.jsonl}\n")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    (tmp_path / "system.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    done = amatax("evaluate", *(str(FAMILY / "sft") if a == "sft" else a for a in arguments))
    assert done.code == 2, done.out
    assert words in done.err
    assert "Traceback" not in done.err


def test_no_model_is_an_error_from_python_too(tmp_path: Path) -> None:
    write_measures(tmp_path, {"a": exact()}, lines=2)
    with pytest.raises(AmataxError, match="no model is named"):
        api.evaluate([], measures=tmp_path / "measures.yaml")


def test_what_another_run_is_writing_stays(tmp_path: Path) -> None:
    write_measures(tmp_path, {"a": exact()}, lines=2)
    half = tmp_path / "r.jsonl.unfinished.tmp"
    half.write_text("{}\n")
    with pytest.raises(AmataxError, match="no model is named"):
        api.evaluate([], measures=tmp_path / "measures.yaml", output=tmp_path / "r.jsonl")
    assert half.read_text() == "{}\n"


def test_data_is_looked_at_before_a_model_is_loaded(amatax: Amatax, tmp_path: Path) -> None:
    write_measures(tmp_path, {"a": exact(data="bad.jsonl"), "b": exact(data="none.jsonl")})
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    shutil.copytree(FAMILY / "sft", tmp_path / "broken")
    with (tmp_path / "broken" / "model.safetensors").open("r+b") as weights:
        weights.seek(100_000)
        weights.write(b"\xff" * 1_000_000)  # NaN: any answer would say so
    done = amatax("evaluate", "./broken", "--measures", "measures.yaml")
    assert done.code == 2
    assert "amatax: 2 faults" in done.err
    assert "line 2: no right answer" in done.err
    assert "none.jsonl: no such file" in done.err
    done = amatax("evaluate", "./broken", "--measures", "measures.yaml")
    (tmp_path / "measures.yaml").write_text(json.dumps({"a": exact()}))
    assert "logits are not finite" in amatax("evaluate", "./broken", "--measures", "measures.yaml").err
