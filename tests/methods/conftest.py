"""What the tests of methods merge."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import save_siblings, tiny_llama
from tests.methods.family import tensors


@pytest.fixture(scope="module")
def family_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16 siblings with small changes from one base; some tensors take several chunks."""
    folder = tmp_path_factory.mktemp("methods")
    save_siblings(folder, tiny_llama(hidden_size=256, intermediate_size=1200, vocab_size=2000))
    shutil.copytree(folder / "sft", folder / "base")
    draws = torch.Generator().manual_seed(9)
    moved = {
        name: t + (torch.randn(t.shape, generator=draws) * 1e-2).to(t.dtype)
        for name, t in tensors(folder / "sft").items()
    }
    save_file(moved, folder / "base" / "model.safetensors", {"format": "pt"})
    return folder
