"""What holds of averaging for any numbers, through the streaming code that merge uses."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from amatax import api

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
finite = st.floats(-1e4, 1e4, allow_nan=False, width=16)


def merge_tensors(folder: Path, sft: torch.Tensor, rlhf: torch.Tensor, ratio: float) -> torch.Tensor:
    """A merge of two one-tensor checkpoints."""
    for name, tensor in (("sft", sft), ("rlhf", rlhf)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({"model.layers.0.mlp.weight": tensor}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"num_hidden_layers": 1}')
    recipe = {"models": {"sft": str(folder / "sft"), "rlhf": str(folder / "rlhf")}, "merge": {"ratios": ratio}}
    api.merge(recipe, folder / "out", threads=1, overwrite=True)
    return load_file(folder / "out" / "model.safetensors")["model.layers.0.mlp.weight"]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).tolist())


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of dtype's numbers at each value, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(value.abs().clamp(min=info.smallest_normal).double()))
    return info.eps * 2.0**exponent


values = st.lists(st.tuples(finite, finite), min_size=1, max_size=20)


@given(pairs=values, ratio=st.floats(0, 1), dtype=st.sampled_from(sorted(FLOATS)))
@settings(max_examples=60)
def test_exact_to_one_ulp(tmp_path_factory, pairs, ratio, dtype) -> None:
    kind = FLOATS[dtype]
    sft, rlhf = (torch.tensor([pair[i] for pair in pairs], dtype=kind) for i in (0, 1))
    got = merge_tensors(tmp_path_factory.mktemp("exact"), sft, rlhf, ratio)
    assert got.dtype is kind
    want = (1 - ratio) * sft.double() + ratio * rlhf.double()
    slack = ulp(want, kind) + 2.0**-22 * torch.maximum(sft.double().abs(), rlhf.double().abs())
    assert ((got.double() - want).abs() <= slack).all()


@given(raw=st.binary(min_size=2, max_size=64), other=st.binary(min_size=64, max_size=64), end=st.sampled_from([0, 1]))
@settings(max_examples=40)
def test_ratio_0_and_1_are_bit_for_bit(tmp_path_factory, raw, other, end) -> None:
    count = len(raw) // 2
    numbers = [n & 0x7F7F for n in struct.unpack(f"<{count}H", raw[: 2 * count])]  # any finite bf16 pattern
    others = [n & 0x7F7F for n in struct.unpack(f"<{count}H", other[: 2 * count])]
    sft, rlhf = (torch.tensor(n, dtype=torch.int32).to(torch.int16).view(torch.bfloat16) for n in (numbers, others))
    got = merge_tensors(tmp_path_factory.mktemp("ends"), sft, rlhf, end)
    assert bits(got) == bits(rlhf if end else sft)


@given(
    numbers=st.lists(st.one_of(finite, st.sampled_from([0.0, -0.0])), min_size=1, max_size=20), ratio=st.floats(0, 1)
)
@settings(max_examples=40)
def test_equal_inputs_are_fixed_points(tmp_path_factory, numbers, ratio) -> None:
    tensor = torch.tensor(numbers, dtype=torch.bfloat16)
    assert bits(merge_tensors(tmp_path_factory.mktemp("fixed"), tensor, tensor, ratio)) == bits(tensor)
