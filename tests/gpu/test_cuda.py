"""On a GPU: the same bytes as on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.adapters import largest_difference, lora, save_adapter, save_model, tensors
from tests.conftest import run_amatax, save_siblings, tiny_llama, write_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_same_bytes_as_the_cpu(tmp_path: Path, dtype: str) -> None:
    config = tiny_llama(hidden_size=512, intermediate_size=8192, vocab_size=20000)
    save_siblings(tmp_path, config, dtype=dtype, shard="20MB")
    recipe = write_recipe(tmp_path, [0.7, 0.4, 0.1])
    for device in ("cpu", "cuda", "cuda:0", "auto"):
        done = run_amatax("merge", recipe, tmp_path / device, "--device", device)
        assert done.code == 0, done.err
        for file in sorted((tmp_path / "cpu").iterdir()):
            assert (tmp_path / device / file.name).read_bytes() == file.read_bytes(), (device, file.name)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare", "dare_ties", "della", "breadcrumbs"])
def test_methods_give_the_same_bytes_as_on_the_cpu(tmp_path: Path, method: str) -> None:
    config = tiny_llama(hidden_size=512, intermediate_size=8192, vocab_size=20000)
    save_siblings(tmp_path, config)
    shutil.copytree(tmp_path / "sft", tmp_path / "base")
    models = {role: f"./{role}" for role in ("base", "sft", "rlhf")}
    merge = {"method": method, "ratios": [0.7, 0.4, 0.1]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"models": models, "merge": merge}))
    for device in ("cpu", "cuda"):
        done = run_amatax("merge", tmp_path / "r.yaml", tmp_path / device, "--device", device)
        assert done.code == 0, done.err
    for file in sorted((tmp_path / "cpu").iterdir()):
        assert (tmp_path / "cuda" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_added_on_the_gpu(tmp_path: Path, dora: bool) -> None:
    """A product is a reduction: its last bit may differ from the CPU's, and a bfloat16 be the neighbour."""
    model = save_model(tmp_path / "model", tiny_llama(hidden_size=512, intermediate_size=8192), dtype="bfloat16")
    save_adapter(model, lora("q_proj", "down_proj", "embed_tokens", use_dora=dora), tmp_path / "lora", spread=0.02)
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"models": models, "merge": {"ratios": [0.7, 0.4, 1]}}))
    for device in ("cpu", "cuda"):
        done = run_amatax("merge", tmp_path / "r.yaml", tmp_path / device, "--device", device)
        assert done.code == 0, done.err
    found, wanted = tensors(tmp_path / "cuda"), tensors(tmp_path / "cpu")
    assert largest_difference(found, wanted) < 2**-7
    differ = sum(int((found[name] != wanted[name]).sum()) for name in wanted)
    assert differ <= 1e-3 * sum(t.numel() for t in wanted.values())


def test_nonfinite_values_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_siblings(tmp_path, tiny_llama())
    file = tmp_path / "rlhf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    done = run_amatax("merge", write_recipe(tmp_path, 0.5), tmp_path / "out", "--device", "cuda")
    assert done.code == 2
    assert "model.norm.weight" in done.err
    assert "element 3" in done.err
