"""A fit whose responses are not there yet: they are sampled first; and `amatax merge --fit`, which does everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import run_amatax
from tests.fitting.conftest import FAMILY


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that names prompts alone."""
    lines = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[:8]
    (tmp_path / "P.jsonl").write_text("\n".join(lines) + "\n")
    file = tmp_path / "r.yaml"
    file.write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\n"
        "fit: {alpha: 0.5, blocks: 2, prompts: P.jsonl, holdout: 0}  # no data yet\n"
    )
    return file


def test_prompts_become_a_merged_folder(recipe: Path, tmp_path: Path) -> None:
    """One command distils, fits and merges; the same command again does nothing; a merge that was cut off does not fit anew."""
    done = run_amatax("merge", "r.yaml", "out", "--fit", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "rlhf answers the prompts of P.jsonl, into out.fitted.data.jsonl" in done.err
    answers = [json.loads(line) for line in (tmp_path / "out.fitted.data.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    assert all(row["response"] for row in answers)
    fitted = yaml.safe_load((tmp_path / "out.fitted.yaml").read_text())
    ratios = fitted["merge"]["ratios"]
    assert sum(ratios) == pytest.approx(1.0, abs=1e-12)
    assert ratios[0] != ratios[1]
    assert "# no data yet" in (tmp_path / "out.fitted.yaml").read_text()
    record = json.loads((tmp_path / "out" / "amatax_record.json").read_text())
    assert record
    assert yaml.safe_load((tmp_path / "out" / "amatax_recipe.yaml").read_text())["merge"]["ratios"]["blocks"] == ratios

    again = run_amatax("merge", "r.yaml", "out", "--fit", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "loading both models" not in again.err
    assert "already" in again.out

    recipe.write_text(recipe.read_text().replace("alpha: 0.5", "alpha: 0.3"))
    other = run_amatax("merge", "r.yaml", "out", "--fit", cwd=tmp_path)
    assert other.code == 2
    assert "out.fitted.yaml exists, from another fit" in other.err


def test_what_is_wrong_with_the_merge_is_found_before_the_fit(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = run_amatax("merge", "r.yaml", "out", "--fit", cwd=tmp_path)
    assert done.code == 2
    assert "answers the prompts" not in done.err
    assert not (tmp_path / "out.fitted.yaml").exists()
    assert run_amatax("merge", "r.yaml", "out", "--fit", "--dry-run", cwd=tmp_path).code == 2


def test_kept_prompts_without_answers_are_answered_by_sft(recipe: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[:4]]
    (tmp_path / "keep.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    command = ["fit-ratios", "r.yaml", "-o", "f.yaml", "--keep", "keep.jsonl", "--keep-weight", "1", "--json"]
    done = run_amatax(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert all(json.loads(line)["response"] for line in (tmp_path / "f.keep.jsonl").read_text().splitlines())
    (found,) = done.json["fits"]
    kl = {row["name"]: row["kl"] for row in found["tradeoff"]}
    assert kl["sft"] == pytest.approx(0, abs=1e-6)
    assert 0 < kl["tax-aware"] < kl["rlhf"]
    again = run_amatax(*command, cwd=tmp_path)
    assert again.code == 0
    assert again.json["already_finished"]
    (record,) = again.json["records"]
    part = found["fitted"]
    assert record["nll"]["fitted_part"]["fitted"] == pytest.approx(part["fitted"], abs=1e-6)
    told = run_amatax(*command[:-1], cwd=tmp_path).out
    assert "finished already" in told
    assert f"fitted part: NLL {part['fitted']:.4f} nats per token, {part['uniform']:.4f} by uniform averaging" in told
    assert "not tested: no part of the data was held out" in told
