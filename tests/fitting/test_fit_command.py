"""amatax fit-ratios from the command line, on the family: the report is true, a killed fit continues, faults are said."""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.errors import OutputError
from amatax.fitting.likelihood import Measured
from amatax.fitting.passes import Passes
from amatax.recipes.loading import load_recipe
from tests.conftest import run_amatax
from tests.fitting.conftest import FAMILY, RECIPE
from tests.fitting.family import nll_of_fitted_part
from tests.forked import FITTING, forks


def test_from_data_to_a_merged_folder(distilled: Path, tmp_path: Path) -> None:
    """The NLL in the report is that of the folder that `amatax merge` writes, loaded with transformers."""
    done = run_amatax(
        "fit-ratios", RECIPE, "-o", "fitted.yaml", "--data", distilled, "--picture", "fit.png", "--json", cwd=tmp_path
    )
    assert done.code == 0, done.err
    (found,) = done.json["fits"]
    fitted = yaml.safe_load((tmp_path / "fitted.yaml").read_text())
    assert fitted["merge"]["ratios"] == found["values"]
    assert sum(found["values"]) == pytest.approx(1.2, abs=1e-12)
    assert fitted["record"]["fit"]["verdict"] == found["verdict"]
    assert "# before RLHF" in (tmp_path / "fitted.yaml").read_text()
    assert (tmp_path / "fit.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob("*unfinished*"))
    assert found["fitted"]["fitted"] < found["fitted"]["uniform"] < found["fitted"]["sft"]
    assert found["held_out"]["samples"] == 5

    assert run_amatax("merge", "fitted.yaml", "out", cwd=tmp_path).code == 0
    assert nll_of_fitted_part(tmp_path / "out", distilled) == pytest.approx(
        found["fitted"]["fitted"], rel=3e-3
    )  # the folder is rounded to bf16


@pytest.mark.parametrize(
    ("wishes", "layers"),
    [
        (["--blocks", "1", "--groups", "attention,mlp"], None),
        (["--blocks", "1", "--free-head"], None),
        (["--blocks", "2", "--weigh-by-layers"], [4, 5]),
    ],
    ids=["groups", "free head", "by layers"],
)
def test_every_shape_of_ratios_is_fitted_and_merged(
    distilled: Path, tmp_path: Path, wishes: list[str], layers: list[int] | None
) -> None:
    """The mean that is held is the one that was asked for, and the written folder has the NLL of the report."""
    done = run_amatax("fit-ratios", RECIPE, "-o", "fitted.yaml", "--data", distilled, *wishes, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (found,) = done.json["fits"]
    inside = [value for name, value in zip(found["names"], found["values"], strict=True) if name != "head"]
    assert np.average(inside, weights=layers) == pytest.approx(0.4, abs=1e-9)
    assert ("head" in found["names"]) == ("--free-head" in wishes)
    assert found["fitted"]["fitted"] < found["fitted"]["uniform"]
    assert run_amatax("merge", "fitted.yaml", "out", cwd=tmp_path).code == 0
    said = pytest.approx(found["fitted"]["fitted"], rel=3e-3)  # the folder is rounded to bf16
    assert nll_of_fitted_part(tmp_path / "out", distilled) == said


def test_a_killed_fit_continues(distilled: Path, tmp_path: Path) -> None:
    command = ["fit-ratios", str(RECIPE), "--data", str(distilled), "--holdout", "0", "--blocks", "2"]
    whole = run_amatax(*command, "-o", "whole.yaml", cwd=tmp_path)
    assert whole.code == 0, whole.err
    journal = tmp_path / "killed.yaml.unfinished.jsonl"
    job = forks(*FITTING).start(tmp_path, *command, "-o", "killed.yaml")
    while not job.ended() and (not journal.exists() or journal.read_text().count("\n") < 6):
        time.sleep(0.02)
    job.send(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    assert not (tmp_path / "killed.yaml").exists()
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as a crash leaves it
    again = run_amatax(*command, "-o", "killed.yaml", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "continuing: 5 passes" in again.err or "continuing: 6 passes" in again.err, again.err
    assert (tmp_path / "killed.yaml").read_bytes() == (tmp_path / "whole.yaml").read_bytes()


def test_passes_of_other_inputs_are_not_taken(distilled: Path, tmp_path: Path) -> None:
    """Two steps of one training run have the same names, sizes and headers: a journal of the one says nothing of the other."""
    for role in ("sft", "rlhf"):
        shutil.copytree(FAMILY / role, tmp_path / role)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("models: {sft: ./sft, rlhf: ./rlhf}\n")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in distilled.read_text().splitlines()[:4]))
    command = ["fit-ratios", "r.yaml", "--data", "few.jsonl", "--blocks", "2", "--holdout", "0", "-o", "f.yaml"]
    job = forks(*FITTING).start(tmp_path, *command)
    journal = tmp_path / "f.yaml.unfinished.jsonl"
    while not job.ended() and (not journal.exists() or journal.read_text().count("\n") < 4):
        time.sleep(0.01)
    job.send(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    (weights,) = (tmp_path / "rlhf").glob("*.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-2000:] = bytes(2000)
    weights.write_bytes(raw)
    again = run_amatax(*command, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "continuing" not in again.err


def test_no_more_blocks_than_layers_and_no_dead_unknowns(distilled: Path, tmp_path: Path) -> None:
    model = run_amatax("inspect", FAMILY / "sft", "--json", cwd=tmp_path)
    assert model.code == 0
    shutil.copy(distilled, tmp_path / "D.jsonl")
    (tmp_path / "r.yaml").write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\n"
        'merge: {ratios: {blocks: [0.4], overrides: [{match: "*", ratio: 0.5}]}}\n'
    )
    done = run_amatax("fit-ratios", "r.yaml", "--data", "D.jsonl", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "no tensor follows the ratio of block 0" in done.err


def test_several_alphas(distilled: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in distilled.read_text().splitlines()[:12]))
    result = api.fit_ratios(RECIPE, tmp_path / "f.yaml", data=few, alpha=[0.3, 0.5], blocks=2, device="cpu")
    assert [f.recipe.name for f in result.fits] == ["f-0.3.yaml", "f-0.5.yaml"]
    for fitted, alpha in zip(result.fits, (0.3, 0.5), strict=True):
        assert sum(fitted.fit.values) / 2 == pytest.approx(alpha, abs=1e-12)
        assert load_recipe(fitted.recipe).merge.ratios == fitted.fit.values
        assert fitted.fit.optima >= 1  # every alpha is looked around for: the best optimum may be another one

    def again(**wishes: object) -> object:
        return api.fit_ratios(
            RECIPE, tmp_path / "f.yaml", **{"data": few, "alpha": [0.3, 0.5], "blocks": 2, "device": "cpu", **wishes}
        )

    assert again().fits == []
    with pytest.raises(OutputError, match="from another fit or changed since"):
        again(weigh_by_layers=True)  # the same ratios of the tensors, another mean
    text = (tmp_path / "f-0.5.yaml").read_text()
    ratio = str(result.fits[1].fit.values[0])
    (tmp_path / "f-0.5.yaml").write_text(text.replace(f"[{ratio}", "[0.123"))
    with pytest.raises(OutputError, match=r"f-0.5.yaml exists, from another fit or changed since"):
        again()


def test_a_journal_is_one_runs_own(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml.unfinished.jsonl"
    found = Measured(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), None)
    first = Passes(path, {"data": "a"})
    first.measured("fit", [0.5], False, lambda: found)
    with pytest.raises(OutputError, match=r"f.yaml: another run is fitting"):
        Passes(path, {"data": "a"})
    first.close()
    with path.open("a") as file:
        file.write('{"x": 1}\n{"key": "fit 0.6"')
    with closing(Passes(path, {"data": "a"})) as again:
        assert again.known == 1
        again.measured("fit", [0.7], False, lambda: found)
    with closing(Passes(path, {"data": "a"})) as third:
        assert third.known == 2
    with closing(Passes(path, {"data": "b"})) as other:
        assert other.known == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent.jsonl"], ["absent.jsonl: no such file"]),
        ([], ["no data to fit on", "--data", "amatax distill"]),
        (["--data", "bad.jsonl"], ["bad.jsonl", "2 of 3 lines", "line 2", "line 3"]),
        (["--data", "D.jsonl", "--alpha", "1.5"], ["alpha is 1.5"]),
        (["--data", "D.jsonl", "--alpha", "nan"], ["alpha is nan"]),
        (["--data", "D.jsonl", "--alpha", "0.4", "--alpha", "0.4000001"], ["two fits are called 0.4"]),
        (["--data", "D.jsonl", "--regulariser", "nan"], ["a regulariser of nan"]),
        (["--data", "D.jsonl", "--blocks", "10"], ["10 blocks for a model of 9 layers"]),
        (["--data", "D.jsonl", "--holdout", "1"], ["held-out share of 1"]),
        (["--data", "one.jsonl"], ["one.jsonl: 1 prompts cannot be split"]),
        (["--data", "D.jsonl", "--keep", "one.jsonl", "--max-kl", "1"], ["one.jsonl: 1 prompts cannot be split"]),
        (["--data", "D.jsonl", "--max-length", "3"], ["D.jsonl: no sample has a response within 3 tokens"]),
        (["--data", "D.jsonl", "-o", "taken.yaml"], ["taken.yaml exists", "--overwrite"]),
        (["--data", "D.jsonl", "-o", "no/where.yaml"], ["no such folder"]),
        (["--data", "D.jsonl", "--device", "cuda"], ["--device cuda"]),
        (["--data", "D.jsonl", "--picture", "no/where.png"], ["no PNG file"]),
        (["--data", "D.jsonl", "--holdout", "D.jsonl"], ["every prompt of the data is held out"]),
    ],
)
def test_faults(distilled: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    shutil.copy(distilled, tmp_path / "D.jsonl")
    good = distilled.read_text().splitlines()[0]
    (tmp_path / "bad.jsonl").write_text(f'{good}\n{{"prompt": "a"}}\n{{"prompt": "a", "response": ""}}\n')
    (tmp_path / "one.jsonl").write_text(good + "\n")
    (tmp_path / "taken.yaml").write_text("mine")
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "fitted.yaml"]
    done = run_amatax("fit-ratios", RECIPE, *arguments, cwd=tmp_path)
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "->" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "fitted.yaml").exists()
    assert (tmp_path / "taken.yaml").read_text() == "mine"


def test_tokenizers_that_differ(distilled: Path, tmp_path: Path) -> None:
    for role in ("sft", "rlhf"):
        shutil.copytree(FAMILY / role, tmp_path / role)
    (tmp_path / "r.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nfit: {alpha: 0.3, data: D.jsonl}\n")
    shutil.copy(distilled, tmp_path / "D.jsonl")
    path = tmp_path / "rlhf" / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    a, b = "Ġa", "Ġgood"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(text))
    done = run_amatax("fit-ratios", "r.yaml", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "the tokenizers of sft and rlhf differ (tokenizer.json)" in done.err

    (tmp_path / "rlhf" / "tokenizer_config.json").unlink()
    done = run_amatax("fit-ratios", "r.yaml", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "the tokenizers of sft and rlhf differ (tokenizer.json, tokenizer_config.json)" in done.err

    shutil.copy(FAMILY / "rlhf" / "tokenizer_config.json", tmp_path / "rlhf")
    shutil.copy(FAMILY / "rlhf" / "tokenizer.json", path)
    config = tmp_path / "sft" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    (tmp_path / "sft" / "chat_template.jinja").unlink(missing_ok=True)
    done = run_amatax("fit-ratios", "r.yaml", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "no chat template" in done.err
    assert "--raw" in done.err


@pytest.mark.parametrize("role", ["sft", "rlhf"])
def test_a_likelihood_that_is_no_number_names_the_model(distilled: Path, tmp_path: Path, role: str) -> None:
    for one in ("sft", "rlhf"):
        shutil.copytree(FAMILY / one, tmp_path / one)
    (path,) = (tmp_path / role).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if "mlp" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    (tmp_path / "r.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\n")
    done = run_amatax("fit-ratios", "r.yaml", "--data", str(distilled), "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert f"of {role} alone, the likelihood of 19 of 19 responses is no number (nan)" in done.err
    assert not (tmp_path / "f.yaml").exists()


def test_what_is_cut_is_said(distilled: Path, tmp_path: Path) -> None:
    wish = {"data": distilled, "alpha": 0.4, "blocks": 1, "holdout": 0.0}
    whole = api.fit_ratios(RECIPE, tmp_path / "whole.yaml", **wish)
    assert not any("longer than" in note for note in whole.notes)
    cut = api.fit_ratios(RECIPE, tmp_path / "cut.yaml", max_length=22, **wish)
    assert any(note.endswith("samples are longer than 22 tokens: cut there") for note in cut.notes)
    assert cut.fits[0].fit.fitted.tokens < whole.fits[0].fit.fitted.tokens
