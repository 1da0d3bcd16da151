"""Numbers worked out by hand, and the trap of averaging in bf16 (facts from the paper's authors' code)."""

from __future__ import annotations

import torch

from amatax.methods.average import average


def merged(sft: list[float], rlhf: list[float], ratio: float, dtype: torch.dtype = torch.float32) -> list[float]:
    return average({"sft": torch.tensor(sft, dtype=dtype), "rlhf": torch.tensor(rlhf, dtype=dtype)}, ratio).tolist()


def test_by_hand() -> None:
    assert merged([1.0, -2.0, 0.0], [3.0, 2.0, 8.0], 0.25) == [1.5, -1.0, 2.0]


def test_equal_inputs_are_fixed_points_where_bf16_arithmetic_moves_them() -> None:
    w = 1.2734375  # exact in bf16
    b = torch.tensor([w], dtype=torch.bfloat16)
    assert (0.2 * b + (1 - 0.2) * b).item() == 1.265625  # what averaging in bf16 gives
    assert merged([w], [w], 0.2) == [w]


def test_negative_zero_stays() -> None:
    result = average({"sft": torch.tensor([-0.0, 0.0]), "rlhf": torch.tensor([-0.0, 0.0])}, 0.3)
    assert torch.signbit(result).tolist() == [True, False]


def test_the_ratio_has_a_gradient() -> None:
    sft, rlhf = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    ratio = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, dtype=torch.float64)
    (average({"sft": sft, "rlhf": rlhf}, ratio) * weight).sum().backward()
    assert torch.isclose(ratio.grad, (weight * (rlhf - sft)).sum())


def test_inputs_are_not_written_to_unless_their_memory_is_given() -> None:
    sft, rlhf = torch.randn(9), torch.randn(9)
    copies = sft.clone(), rlhf.clone()
    new = average({"sft": sft, "rlhf": rlhf}, 0.7)
    assert torch.equal(sft, copies[0])
    assert torch.equal(rlhf, copies[1])
    assert average({"sft": sft, "rlhf": rlhf}, 0.7, rlhf) is rlhf
    assert torch.equal(rlhf, new)
    assert torch.equal(sft, copies[0])
