"""The methods through the command: same bytes however it is cut, faults with their lines, methods of other packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from amatax.methods import kernel
from tests.conftest import Run, run_amatax
from tests.methods.family import OPTIONS, recipe, tensors
from tests.methods.whole import merge


@pytest.mark.parametrize("output", [{}, {"dtype": "float32"}])
@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_every_tensor_is_that_of_the_method(
    family_of_three: Path, tmp_path: Path, method: str, output: dict[str, str]
) -> None:
    """One after another through the function alone, in other blocks than the command has; and by more threads and shards."""
    made = recipe(family_of_three, tmp_path, method, **output)
    assert run_amatax("merge", made, tmp_path / "out", "--threads", 1).code == 0
    found = tensors(tmp_path / "out")
    models = {role: tensors(family_of_three / role) for role in ("base", "sft", "rlhf")}
    for name, got in found.items():
        base, sft, rlhf = (models[role][name].float().flatten() for role in ("base", "sft", "rlhf"))
        block = 1 << 17 if method == "slerp" else 50_000  # sums hang on where they are cut
        want = merge(method, base, sft, rlhf, 0.4, block=block, name=name, **OPTIONS[method])
        assert torch.equal(got.flatten(), want.to(got.dtype)), name
    other = recipe(family_of_three, tmp_path, method, max_shard_size="1MB", **output)
    assert run_amatax("merge", other, tmp_path / "other", "--threads", 3).code == 0
    again = tensors(tmp_path / "other")
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], found[name]) for name in found)
    verified = run_amatax("verify", tmp_path / "other")
    assert verified.code == 0, verified.err


def test_task_arithmetic_of_scale_1_is_the_average_and_leaves_the_base_alone(
    family_of_three: Path, tmp_path: Path
) -> None:
    for role in ("sft", "rlhf"):
        (tmp_path / role).symlink_to(family_of_three / role)
    models = "models: {base: ./not-there, sft: ./sft, rlhf: ./rlhf}\n"
    for method in ("task_arithmetic", "average"):
        made = tmp_path / f"{method}.yaml"
        made.write_text(f"{models}merge: {{method: {method}, ratios: [0, 0.3, 0.7, 1]}}\n")
        run = run_amatax("merge", made, tmp_path / method)
        assert run.code == 0, run.err
    assert "does not depend on base" in run_amatax("merge", tmp_path / "task_arithmetic.yaml", "--dry-run").out
    files = [tmp_path / method / "model.safetensors" for method in ("task_arithmetic", "average")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = tmp_path / "less.yaml"
    made.write_text(f"{models}merge: {{method: task_arithmetic, scale: 0.9, ratios: 0.3}}\n")
    assert "models.base" in run_amatax("merge", made, tmp_path / "less").err


ROWS = 1990  # of base's vocabulary, where it is another one


@pytest.mark.parametrize("rows", [ROWS, 2010])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_base_with_another_vocabulary(family_of_three: Path, tmp_path: Path, method: str, rows: int) -> None:
    """Refused; with `vocabulary: common` the rows that all have are the method's, and the others the average."""
    for role in ("sft", "rlhf"):
        (tmp_path / role).symlink_to(family_of_three / role)
    shutil.copytree(family_of_three / "base", tmp_path / "base")
    models = {role: tensors(family_of_three / role) for role in ("base", "sft", "rlhf")}
    vocabulary = [name for name, t in models["sft"].items() if len(t) == 2000]
    assert len(vocabulary) == 2
    for name in vocabulary:
        models["base"][name] = torch.cat([models["base"][name], torch.ones(10, 256, dtype=torch.bfloat16)])[:rows]
    save_file(models["base"], tmp_path / "base" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    made = recipe(tmp_path, tmp_path, method)
    refused = run_amatax("merge", made, tmp_path / "out")
    assert refused.code == 2
    assert f"has 2000 rows in sft and {rows} in base" in refused.err
    assert "vocabulary: common" in refused.err

    text = yaml.safe_load(made.read_text())
    made.write_text(yaml.safe_dump({**text, "merge": {**text["merge"], "vocabulary": "common"}}))
    done = run_amatax("merge", made, tmp_path / "out", "--threads", 1)
    assert done.code == 0, done.err
    assert (f"the last 10 rows of {vocabulary[0]!r}, which base lacks" in done.err + done.out) == (rows == ROWS)
    found, common = tensors(tmp_path / "out"), min(rows, 2000)
    for name, got in found.items():
        base, sft, rlhf = (models[role][name].float() for role in ("base", "sft", "rlhf"))
        if name in vocabulary:
            assert got.shape == sft.shape
            averaged = kernel("average")({role: models[role][name] for role in ("sft", "rlhf")}, 0.4)
            assert torch.equal(got[common:], averaged[common:])
            got, base, sft, rlhf = (t[:common] for t in (got, base, sft, rlhf))
        flat = [t.flatten() for t in (base, sft, rlhf)]
        want = merge(method, *flat, 0.4, block=50_000, name=name, **OPTIONS[method])
        assert torch.equal(got.flatten(), want.bfloat16()), name
    made.write_text(made.read_text().replace("output: {}", "output: {max_shard_size: 1MB}"))
    assert run_amatax("merge", made, tmp_path / "other", "--threads", 3).code == 0
    again = tensors(tmp_path / "other")
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 1
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert run_amatax("verify", tmp_path / "other").code == 0
    made.write_text(made.read_text().replace("output: {", "output: {config: base, "))
    wrong = run_amatax("merge", made, tmp_path / "wrong")
    assert wrong.code == 2
    assert f"vocab_size {rows}" in wrong.err
    assert "config: sft" in wrong.err


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_common_rows_are_of_methods_that_read_a_base(siblings: Path, method: str) -> None:
    """Without one there is nothing to have rows in common with: refused, not ignored."""
    for without_base in (True, False):
        if not without_base:
            shutil.copytree(siblings / "sft", siblings / "base")
        err = faults(siblings, method=method, vocabulary="common", without_base=without_base).err
        assert "(merge.vocabulary): `vocabulary: common` is about the rows that base lacks" in err
        assert f"{method} reads no base" in err and "leave it out" in err


def faults(folder: Path, **merge: Any) -> Run:
    models = {role: f"./{role}" for role in ("base", "sft", "rlhf")}
    if merge.pop("without_base", False):
        del models["base"]
    (folder / "r.yaml").write_text(
        yaml.safe_dump({"models": models, "merge": {"ratios": 0.4, **merge}}, sort_keys=False)
    )
    done = run_amatax("merge", "r.yaml", "out", "--dry-run", cwd=folder)
    assert done.code == 2
    assert "Traceback" not in done.err
    return done


def test_faults_name_the_line_and_the_way_out(siblings: Path) -> None:
    shutil.copytree(siblings / "sft", siblings / "base")
    assert "r.yaml:8 (merge.density)" in faults(siblings, method="ties", density=1.5).err
    assert "less than or equal to 1, not 1.5" in faults(siblings, method="ties", density=1.5).err
    assert "not '0.5'" in faults(siblings, method="dare", density="0.5").err
    assert "did you mean `density`?" in faults(siblings, method="dare", densty=0.5).err
    assert "unknown key" in faults(siblings, method="slerp", density=0.5).err
    assert "epsilon is at most 0.3 here" in faults(siblings, method="della", density=0.7, epsilon=0.4).err
    assert "did you mean `dare_ties`?" in faults(siblings, method="dare_tie").err
    missing = faults(siblings, method="ties", without_base=True).err
    assert "models.base is needed here" in missing
    assert "add `base:` under `models`" in missing
    assert "valid integer, not 1.5" in faults(siblings, method="dare", seed=1.5).err


def test_beyond_the_models_only_when_told(siblings: Path) -> None:
    shutil.copytree(siblings / "sft", siblings / "base")
    assert "extrapolate: true" in faults(siblings, method="ties", ratios=1.3).err
    text = (siblings / "r.yaml").read_text().replace("merge:\n", "merge:\n  extrapolate: true\n")
    (siblings / "r.yaml").write_text(text)
    assert run_amatax("merge", "r.yaml", "out", cwd=siblings).code == 0


def test_the_defaults_stand_in_what_is_written(family_of_three: Path, tmp_path: Path) -> None:
    """A later version with other defaults makes the same weights from it."""
    OPTIONS["plain"] = {}
    (tmp_path / "r.yaml").write_text(recipe(family_of_three, tmp_path, "plain").read_text().replace("plain", "della"))
    del OPTIONS["plain"]
    assert run_amatax("merge", tmp_path / "r.yaml", tmp_path / "out").code == 0
    written = yaml.safe_load((tmp_path / "out" / "amatax_recipe.yaml").read_text())["merge"]
    assert (written["density"], written["epsilon"], written["seed"], written["rescale"]) == (0.5, 0.1, 0, True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DELLA (arXiv 2406.11617)" in card
    assert "epsilon 0.1" in card


def test_a_value_that_leaves_the_dtype_is_an_error(siblings: Path) -> None:
    """Between bfloat16's largest and float32's largest."""
    shutil.copytree(siblings / "sft", siblings / "base")
    file = siblings / "base" / "model.safetensors"
    base = tensors(siblings / "base")
    name = next(name for name in base if "proj" in name)
    base[name][0, 0] = 3e38
    save_file(base, file, {"format": "pt"})
    models = {role: f"./{role}" for role in ("base", "sft", "rlhf")}
    merge = {"method": "task_arithmetic", "ratios": 0.4, "scale": -0.135}
    (siblings / "r.yaml").write_text(yaml.safe_dump({"models": models, "merge": merge}))
    done = run_amatax("merge", "r.yaml", "out", cwd=siblings)
    assert done.code == 2, done.out
    assert "overflows BF16" in done.err


def test_one_scale_however_it_is_written(family_of_three: Path, tmp_path: Path) -> None:
    file = recipe(family_of_three, tmp_path, "task_arithmetic")
    file.write_text(file.read_text().replace("scale: 0.8", "scale: 1"))
    assert run_amatax("merge", file, tmp_path / "out").code == 0
    file.write_text(file.read_text().replace("scale: 1", "scale: 1.0"))
    assert "finished already" in run_amatax("merge", file, tmp_path / "out").out


def test_check_knows_what_a_method_needs(siblings: Path) -> None:
    (siblings / "r.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {method: ties, ratios: 0.5}\n")
    done = run_amatax("check", "r.yaml", cwd=siblings)
    assert done.code == 2
    assert "models.base is needed here" in done.err


def test_a_list_for_scripts(amatax: Callable[..., Run]) -> None:
    known = amatax("methods", "--json").json
    assert known["ties"]["needs"] == ["base", "sft", "rlhf"]
    assert known["ties"]["options"] == {"density": 0.5, "scale": 1.0}


def test_a_method_of_another_package(siblings: Path) -> None:
    """Found by its entry point, in a process of its own; its options are checked like ours."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "other_package")}

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "amatax", *args], cwd=siblings, env=env, capture_output=True, text=True
        )

    listed = command("methods")
    assert "halfway\n  Halfway: a method from another package" in listed.stdout
    assert "the method 'broken' of the package amatax-halfway cannot be used: No module named" in listed.stderr
    (siblings / "r.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {method: broken, ratios: 0.5}\n")
    assert "update or uninstall that package" in command("merge", "r.yaml", "out").stderr
    text = "models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {method: halfway, ratios: 0.5, strength: %s}\n"
    (siblings / "r.yaml").write_text(text % 2)
    assert "merge.strength" in command("merge", "r.yaml", "out").stderr
    (siblings / "r.yaml").write_text(
        (text % 0.5).replace("}\nmerge", "}\nmerge").replace(", strength", ", words: low, strength")
    )
    done = command("merge", "r.yaml", "out")
    assert done.returncode == 0, done.stderr
    assert 'words "low"' in (siblings / "out" / "README.md").read_text()
    sft, rlhf, out = (tensors(siblings / folder) for folder in ("sft", "rlhf", "out"))
    for name in out:
        want = sft[name].float() + 0.25 * (rlhf[name].float() - sft[name].float())
        assert torch.equal(out[name], want.to(out[name].dtype))
