"""A tensor of several chunks comes out as one: every element in its place, its checksum that of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.methods.average import average
from amatax.planning.memory import CPU_ELEMENTS

NAME = "model.layers.0.mlp.weight"
COUNT = 3 * CPU_ELEMENTS + 4321


@pytest.mark.parametrize("ratio", [0, 0.3, 1])
@pytest.mark.parametrize(
    ("sft_dtype", "rlhf_dtype"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "float16")]
)
def test_every_element_is_in_its_place(tmp_path: Path, sft_dtype: str, rlhf_dtype: str, ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    both = {}
    for role, dtype in (("sft", sft_dtype), ("rlhf", rlhf_dtype)):
        both[role] = torch.randn(COUNT, generator=generator).to(getattr(torch, dtype))
        (tmp_path / role).mkdir()
        save_file({NAME: both[role]}, tmp_path / role / "model.safetensors")
        (tmp_path / role / "config.json").write_text('{"num_hidden_layers": 1}')
    models = {role: str(tmp_path / role) for role in both}
    api.merge({"models": models, "merge": {"ratios": ratio}}, tmp_path / "out", threads=2)

    compute = torch.float64 if sft_dtype == "float32" else torch.float32
    whole = average({role: tensor.to(compute) for role, tensor in both.items()}, ratio).to(both["sft"].dtype)
    got = load_file(tmp_path / "out" / "model.safetensors")[NAME]
    wrong = (got != whole).nonzero().flatten()
    assert not len(wrong), f"{len(wrong)} elements, first {int(wrong[0])}"
    sums = json.loads((tmp_path / "out" / "amatax_record.json").read_text())["tensors"][NAME]
    for role, tensor in {"output": got, **both}.items():
        if role in sums:
            assert sums[role] == xxhash.xxh3_128_hexdigest(tensor.view(torch.uint8).numpy().tobytes()), role
