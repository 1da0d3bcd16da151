"""Masks that hang on the seed, the tensor's name and the element alone."""

from __future__ import annotations

import math

import pytest
import torch

from amatax.methods import Chunk
from amatax.methods._random import MIX, ODD, WORD, numbers
from tests.methods.whole import merge

CPU = torch.device("cpu")


def test_the_hash_by_plain_numbers() -> None:
    """Python's own integers give the same: nothing hangs on how a device overflows."""
    import hashlib

    digest = hashlib.blake2b(b"7\0a.weight\x000", digest_size=8).digest()
    start, key = (int.from_bytes(half, "little") for half in (digest[:4], digest[4:]))
    expected = []
    for index in range(1000, 1100):
        rounds = [(index * ODD + start) % WORD]
        for (shift, factor), extra in zip(MIX, (key, 0, 0), strict=True):
            rounds.append(((rounds[-1] ^ rounds[-1] >> shift) * factor % WORD) ^ extra)
        expected.append((rounds[2] // 2, rounds[3] // 2))
    sft, rlhf = numbers(Chunk("a.weight", 1000), 100, 7, CPU)
    assert [(a % (WORD // 2), b % (WORD // 2)) for a, b in zip(sft.tolist(), rlhf.tolist(), strict=True)] == expected


def test_pieces_are_those_of_the_whole_also_beyond_32_bits() -> None:
    for begin in (0, WORD - 100, 3 * WORD - 7):
        whole = numbers(Chunk("a", begin), 300, 0, CPU)
        parts = [numbers(Chunk("a", begin + i), n, 0, CPU) for i, n in ((0, 93), (93, 7), (100, 200))]
        for model in range(2):
            assert torch.equal(whole[model], torch.cat([part[model] for part in parts]))
    low, high = (numbers(Chunk("a", begin), 300, 0, CPU)[0] for begin in (0, WORD))
    assert not torch.equal(low, high)


def chi_squared(cells: torch.Tensor) -> float:
    """Of counts that should be equal, in standard deviations from what it should be."""
    cells, free = cells.double(), len(cells) - 1
    return (float(((cells - cells.mean()) ** 2 / cells.mean()).sum()) - free) / math.sqrt(2 * free)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_uniform_and_independent(seed: int) -> None:
    """Upper bits of each model and of both together by chi squared, neighbours, tensors, models and seeds by correlation; five
    standard errors."""
    count = 1 << 20
    sft, rlhf = numbers(Chunk("layers.0.weight", 0), count, seed, CPU)
    for model in (sft, rlhf):
        assert abs(chi_squared(torch.bincount((model >> 21) + 512, minlength=1024))) < 5
    for shift in (0, 1, 7, 2048):  # of one element, and of neighbours
        together = ((torch.roll(rlhf, shift) >> 26) + 16) * 32 + (sft >> 26) + 16
        assert abs(chi_squared(torch.bincount(together, minlength=1024))) < 5
    unit = sft.double() / 2**30
    others = {
        "next": torch.roll(sft, 1),
        "far": torch.roll(sft, 4096),
        "tensor": numbers(Chunk("layers.1.weight", 0), count, seed, CPU)[0],
        "role": rlhf,
        "seed": numbers(Chunk("layers.0.weight", 0), count, seed + 1, CPU)[0],
    }
    for name, other in others.items():
        assert abs(float((unit * other.double() / 2**30).mean()) * 3) < 5 / math.sqrt(count), name


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della"])
def test_the_same_in_any_pieces(method: str) -> None:
    base, sft, rlhf = (torch.randn(10_000, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole = merge(method, base, sft, rlhf, 0.4, seed=3)
    for block in (4096, 1000, 37):
        assert torch.equal(merge(method, base, sft, rlhf, 0.4, seed=3, block=block), whole)
    assert not torch.equal(merge(method, base, sft, rlhf, 0.4, seed=4), whole)
    assert not torch.equal(merge(method, base, sft, rlhf, 0.4, seed=3, name="other"), whole)


def test_the_mean_over_seeds_is_the_undropped_merge() -> None:
    """4,000 elements, 400 seeds: each element's mean within 6 standard errors (a false alarm in 10^5 runs), their mean within 5."""
    base, sft, rlhf = (torch.randn(4000, generator=torch.Generator().manual_seed(i)) for i in range(3))
    wanted = merge("task_arithmetic", base, sft, rlhf, 0.4)
    draws = torch.stack([merge("dare", base, sft, rlhf, 0.4, density=0.3, seed=seed) for seed in range(400)])
    error = draws.std(0) / math.sqrt(400)
    apart = (draws.mean(0) - wanted) / error
    assert float(apart.abs().max()) < 6
    assert abs(float(apart.mean())) < 5 / math.sqrt(4000)
    assert float(apart.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.999])
def test_the_share_that_is_kept(density: float) -> None:
    count = 1 << 20
    zero, one = torch.zeros(count), torch.ones(count)
    kept = merge("dare", zero, zero, one, 1.0, density=density, rescale=False).mean().item()
    assert kept == pytest.approx(density, abs=5 * math.sqrt(density * (1 - density) / count))


@pytest.mark.parametrize("density", [0.0, 1e-12, 5e-324, 1 - 1e-12])
@pytest.mark.parametrize("method", ["dare", "dare_ties", "della"])
def test_densities_nearer_to_the_ends_than_the_numbers_tell(method: str, density: float) -> None:
    change = torch.arange(1.0, 9.0)
    epsilon = {"epsilon": 0.0} if method == "della" else {}
    got = merge(method, torch.zeros(8), torch.zeros(8), change, 1.0, density=density, **epsilon)
    assert torch.allclose(got, change if density > 0.5 else torch.zeros(8))
    nan = torch.full((8,), math.nan)
    assert merge(method, torch.zeros(8), torch.zeros(8), nan, 1.0, density=density, **epsilon).isnan().all()
