"""Same input, same bytes: threads, hash seeds, runs, places; same tensors over shard sizes and input layouts."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import run_amatax, save_siblings, tiny_llama, write_recipe


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def assert_same_tensors(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Siblings whose larger tensors take several chunks, with a merge to compare with."""
    folder = tmp_path_factory.mktemp("same")
    save_siblings(folder, tiny_llama(hidden_size=256, intermediate_size=1024, vocab_size=2000), shard="3MB")
    write_recipe(folder, {"blocks": [0.7, 0.4, 0.1], "embeddings": 0, "head": 1})
    assert run_amatax("merge", "recipe.yaml", "out", "--threads", 1, cwd=folder).code == 0
    return folder


@pytest.mark.parametrize("threads", [2, 4])
def test_threads(family: Path, tmp_path: Path, threads: int) -> None:
    assert run_amatax("merge", family / "recipe.yaml", tmp_path / "out", "--threads", threads).code == 0
    assert digests(tmp_path / "out") == digests(family / "out")


@pytest.mark.parametrize("seed", ["0", "4242"])
def test_hash_seeds(family: Path, tmp_path: Path, seed: str) -> None:
    done = run_amatax("merge", family / "recipe.yaml", tmp_path / "out", env={"PYTHONHASHSEED": seed})
    assert done.code == 0, done.err
    assert digests(tmp_path / "out") == digests(family / "out")


@pytest.mark.parametrize("size", ["300KB", "1MB", "100GB"])
def test_shard_sizes_keep_the_tensors(family: Path, tmp_path: Path, size: str) -> None:
    text = (family / "recipe.yaml").read_text().replace("./", f"{family}/") + f"output: {{max_shard_size: {size}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    assert run_amatax("merge", "r.yaml", "out", cwd=tmp_path).code == 0
    assert_same_tensors(tmp_path / "out", family / "out")


def test_the_layout_of_the_inputs_does_not_matter(family: Path, tmp_path: Path) -> None:
    """One file or shards, an index or none, safetensors or torch.save."""
    from safetensors.torch import save_file

    save_file(tensors(family / "sft"), _fresh(tmp_path / "sft", family / "sft") / "model.safetensors", {"format": "pt"})
    torch.save(tensors(family / "rlhf"), _fresh(tmp_path / "rlhf", family / "rlhf") / "pytorch_model.bin")
    shutil.copy(family / "recipe.yaml", tmp_path)
    done = run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert_same_tensors(tmp_path / "out", family / "out")


def test_shards_without_an_index(family: Path, tmp_path: Path) -> None:
    for name in ("sft", "rlhf"):
        shutil.copytree(family / name, tmp_path / name)
        (tmp_path / name / "model.safetensors.index.json").unlink(missing_ok=True)
    shutil.copy(family / "recipe.yaml", tmp_path)
    assert run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path).code == 0
    assert_same_tensors(tmp_path / "out", family / "out")


def test_the_recorded_recipe_makes_it_again(family: Path, tmp_path: Path) -> None:
    assert run_amatax("merge", family / "out" / "amatax_recipe.yaml", tmp_path / "again").code == 0
    assert digests(tmp_path / "again") == digests(family / "out")


def test_python_and_the_command_line_agree(family: Path, tmp_path: Path) -> None:
    import amatax

    result = amatax.merge(family / "recipe.yaml", tmp_path / "out")
    assert isinstance(result.plan, amatax.Plan)
    assert digests(tmp_path / "out") == digests(family / "out")


def _fresh(folder: Path, source: Path) -> Path:
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    return folder
