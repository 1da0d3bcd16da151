"""Numbers worked out by hand, and the trap of averaging in bf16 (facts from the paper's authors' code)."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from amatax.methods.average import average, slope


def merged(sft: list[float], rlhf: list[float], ratio: float, dtype: torch.dtype = torch.float32) -> list[float]:
    return average({"sft": torch.tensor(sft, dtype=dtype), "rlhf": torch.tensor(rlhf, dtype=dtype)}, ratio).tolist()


def test_by_hand() -> None:
    assert merged([1.0, -2.0, 0.0], [3.0, 2.0, 8.0], 0.25) == [1.5, -1.0, 2.0]


def test_equal_inputs_are_fixed_points_where_bf16_arithmetic_moves_them() -> None:
    w = 1.2734375  # exact in bf16
    b = torch.tensor([w], dtype=torch.bfloat16)
    assert (0.2 * b + (1 - 0.2) * b).item() == 1.265625  # what averaging in bf16 gives
    assert merged([w], [w], 0.2) == [w]


@pytest.mark.parametrize("ratio", [-0.3, 0.0, 1e-30, 1e-8, 3e-8, 0.3, 0.5, 0.7, 1 - 1e-8, 1.0, 1.3, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_negative_zero_stays(dtype: torch.dtype, ratio: float) -> None:
    zeros = torch.tensor([-0.0, 0.0], dtype=dtype)
    result = average({"sft": zeros, "rlhf": zeros.clone()}, ratio)
    assert result.dtype is dtype
    assert torch.signbit(result).tolist() == [True, False]


def rounded(exact: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of a dtype, ties to even, by comparing exact fractions."""
    near = torch.tensor(float(exact), dtype=torch.float64).to(dtype)
    around = [torch.nextafter(near, torch.tensor(end, dtype=dtype)) for end in (-float("inf"), float("inf"))]
    even = {
        float(x): x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]) & 1 for x in (near, *around)
    }
    return min(even, key=lambda value: (abs(Fraction(value) - exact), int(even[value])))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_one_subtraction_and_one_fused_multiply_add(dtype: torch.dtype, ratio: float) -> None:
    """Each rounding, by exact fractions: other steps would give other bytes in a later torch or on another machine."""
    generator = torch.Generator().manual_seed(0)
    sft = torch.randn(1003, dtype=torch.float64, generator=generator)  # not a whole number of vector registers
    rlhf = (sft + 0.3 * torch.randn(1003, dtype=torch.float64, generator=generator)).to(dtype)
    sft = (sft * 10.0 ** torch.randint(-9, 3, (1003,), generator=generator)).to(dtype)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    weight = rounded(Fraction(1 - ratio if ratio <= 0.5 else ratio), compute)
    near, far = (sft, rlhf) if ratio <= 0.5 else (rlhf, sft)
    expected = []
    for x, y in zip(near.tolist(), far.tolist(), strict=True):
        change = rounded(Fraction(x) - Fraction(y), compute)
        fused = rounded(Fraction(x) + (Fraction(weight) - 1) * Fraction(change), compute)
        expected.append(rounded(Fraction(fused), dtype))
    assert average({"sft": sft, "rlhf": rlhf}, ratio).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_ends_are_the_models(dtype: torch.dtype) -> None:
    sft, rlhf = torch.randn(99).to(dtype), torch.randn(99).to(dtype)
    assert torch.equal(average({"sft": sft, "rlhf": rlhf}, 0.0), sft)
    assert torch.equal(average({"sft": sft, "rlhf": rlhf}, 1), rlhf)
    assert torch.equal(average({"sft": sft, "rlhf": rlhf.clone()}, 1.0, torch.empty_like(sft)), rlhf)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_the_slope_is_the_change_for_a_change_of_the_ratio(at: float) -> None:
    tensors = {role: torch.randn(50, dtype=torch.float64) for role in ("sft", "rlhf")}
    change = (average(tensors, at + 0.01) - average(tensors, at - 0.01)) / 0.02
    assert torch.allclose(slope(tensors, at), change, rtol=1e-9)


def test_inputs_are_not_written_to_unless_their_memory_is_given() -> None:
    sft, rlhf = torch.randn(9), torch.randn(9)
    copies = sft.clone(), rlhf.clone()
    new = average({"sft": sft, "rlhf": rlhf}, 0.7)
    assert torch.equal(sft, copies[0])
    assert torch.equal(rlhf, copies[1])
    assert average({"sft": sft, "rlhf": rlhf}, 0.7, rlhf) is rlhf
    assert torch.equal(rlhf, new)
    assert torch.equal(sft, copies[0])
