"""What a sweep is asked for and cannot give, said as soon as it can be known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from amatax import api
from amatax.errors import DataError
from amatax.evaluation.sweeping import JOURNAL
from tests.conftest import Run
from tests.fitting.conftest import FAMILY

LENGTH = {"measure": "length", "data": "p.jsonl", "max_new_tokens": 2, "higher": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe of the family's with a reward that is below 0, and its prompts."""
    lines = (FAMILY / "data" / "open.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "p.jsonl").write_text("".join(lines[:16]))
    (tmp_path / "r.py").write_text("def debt(prompt, response):\n    return -1.0 - len(response)\n")
    declare(tmp_path, debt={"measure": "reward", "data": "p.jsonl", "max_new_tokens": 2}, length=LENGTH)
    return tmp_path


def declare(folder: Path, **measures: Any) -> None:
    models = {"sft": str(FAMILY / "sft"), "rlhf": str(FAMILY / "rlhf")}
    recipe = {"models": models, "merge": {"ratios": 0.5}, "measures": measures}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))


def wishes(folder: Path, **options: Any) -> dict[str, Any]:
    return {"alpha": "0.5", "device": "cpu", "reward": f"{folder / 'r.py'}:debt", **options}


def test_a_share_of_a_negative_value(folder: Path) -> None:
    """As soon as SFT and RLHF are measured; with another wish the sweep goes on from there."""
    for _ in range(2):
        with pytest.raises(DataError, match=r"debt is -.* on rlhf, and a share of a negative number") as caught:
            api.sweep(folder / "r.yaml", folder / "s", **wishes(folder, require=["debt >= 0.9*rlhf"]))
        assert "debt >= rlhf - 0.1" in caught.value.hint
        entries = [json.loads(line) for line in (folder / "s" / JOURNAL).read_text().splitlines()]
        assert [entry["point"] for entry in entries if "point" in entry] == ["sft", "sft", "rlhf", "rlhf"]
    with pytest.raises(DataError, match="a share of a negative number"):
        api.preview_sweep(folder / "r.yaml", folder / "s", **wishes(folder, require=["debt >= 0.9*rlhf"]))
    swept = api.sweep(folder / "r.yaml", folder / "s", **wishes(folder, require=["debt >= rlhf - 100"]))
    assert swept.measured == 2


def test_too_few_samples_to_halve(folder: Path) -> None:
    """Before anything is measured where something is required; else a note, and the table all the same."""
    declare(folder, length={**LENGTH, "where": {"thing": "spoon"}})
    asked = {"alpha": "0.5", "device": "cpu"}
    for verb in (api.sweep, api.preview_sweep):
        with pytest.raises(DataError, match=r"length: \d samples? cannot be halved"):
            verb(folder / "r.yaml", folder / "s", require=["length >= 0.9*rlhf"], **asked)
        assert not (folder / "s").exists()
    ahead = api.preview_sweep(folder / "r.yaml", folder / "s", **asked)
    assert "nothing will be chosen: length" in ahead.notes[0]
    swept = api.sweep(folder / "r.yaml", folder / "s", **asked)
    assert swept.notes == ahead.notes
    assert swept.measured == 3


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line, indent=None) + "\n" for line in lines))
    return path


def test_fitted_prompts_that_are_measured(folder: Path) -> None:
    """Counted, with their lines, whatever the words of JSON and whether as `prompt` or as `messages`."""
    declare(folder, length=LENGTH)
    asked = [json.loads(line)["prompt"] for line in (folder / "p.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[:20]]
    turns = {"messages": [{"role": "user", "content": asked[7]}, {"role": "assistant", "content": "Yes ."}]}
    data = write(
        folder / "d.jsonl",
        *others,
        {"prompt": asked[2], "response": "No ."},
        turns,
        {**turns, "messages": turns["messages"]},
    )
    clean = write(folder / "clean.jsonl", *others)
    wanted = {"alpha": "0.5", "ways": ["fitted"], "blocks": [2], "device": "cpu"}
    said = (
        f"2 of the 22 prompts of {data} that are fitted are measured by length in p.jsonl, too "
        "(line 21 is line 3, line 22 is line 8)"
    )
    for verb in (api.sweep, api.preview_sweep):
        with pytest.raises(DataError) as caught:
            verb(folder / "r.yaml", folder / "s", data=data, **wanted)
        assert caught.value.message == said
        assert "--allow-overlap" in caught.value.hint
        assert not (folder / "s").exists()
    for options in ({"data": clean}, {"data": clean, "keep": data}, {"data": data, "ways": ["uniform"]}):
        assert api.preview_sweep(folder / "r.yaml", folder / "s", **{**wanted, **options}).notes == []
    with pytest.raises(DataError, match=r"2 of the 22 prompts .* that are kept"):
        api.preview_sweep(
            folder / "r.yaml", folder / "s", **{**wanted, "data": clean, "keep": data, "ways": ["tax-aware"]}
        )
    (folder / "r.yaml").write_text((folder / "r.yaml").read_text() + "fit: {prompts: d.jsonl}\n")
    with pytest.raises(DataError, match=r"2 of the 22 prompts"):
        api.preview_sweep(folder / "r.yaml", folder / "s", **wanted)
    swept = api.sweep(folder / "r.yaml", folder / "s", data=data, allow_overlap=True, **wanted)
    assert swept.notes == [said]
    assert "2 of the 22 prompts" in (folder / "s" / "report.html").read_text()


def test_a_measure_that_is_constant(folder: Path, amatax: Callable[..., Run]) -> None:
    """It is said, counts for nothing, and a requirement of it is held against it all the same."""
    prompts = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    write(folder / "q.jsonl", *({"prompt": line["prompt"], "references": ["nobody says this"]} for line in prompts))
    never = {"measure": "contains", "data": "q.jsonl", "max_new_tokens": 2}
    declare(folder, debt={"measure": "reward", "data": "p.jsonl", "max_new_tokens": 8}, never=never)
    command = ["sweep", "r.yaml", "-o", "s", "--alpha", "0.5", "--reward", "r.py:debt", "--device", "cpu", "--json"]
    said = "never is 0 at every point: it tells no merge from another, and is left out of the fronts and of the choice."
    for requirement, headline in (
        ("never >= 0", "Take uniform 0.5."),
        ("never >= 0.5", "No merge of 1 keeps what was asked"),
    ):
        done = amatax(*command, "--require", requirement, cwd=folder)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["constant"] == ["never"]
        assert found["verdict"][0].startswith(headline)
        assert found["verdict"].count(said) == 1
        assert said in (folder / "s" / "report.html").read_text()


def test_the_familys_files_share_no_prompt() -> None:
    found = [
        {json.loads(line)["prompt"] for line in file.read_text().splitlines()}
        for file in sorted((FAMILY / "data").glob("*.jsonl"))
    ]
    assert len(found) == 4
    assert len(set().union(*found)) == sum(map(len, found))
