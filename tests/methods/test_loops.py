"""The compiled loops against torch's own operations: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from amatax.methods import Chunk, Chunks, bind
from amatax.methods import _compiled as compiled
from amatax.methods._consensus import agreed
from amatax.methods._magnitudes import EVERYTHING, NOTHING, Cut, trimmed
from amatax.methods._random import WORD, drop, numbers
from amatax.methods._selection import cuts
from tests.disks import small_disk
from tests.methods.test_selection import KINDS, RANKS, chunks_of

COUNT = compiled.MANY + 977  # no multiple of any vector's length
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])


@contextmanager
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_module", lambda: None)
        yield


def changes(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of them, with zeros, equal and opposite ones."""
    draws = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(COUNT, generator=draws, dtype=dtype) * 1e-3 for _ in range(2))
    for change in (one, other):
        change[torch.rand(COUNT, generator=draws) < 0.2] = 0
    other[:5000] = -one[:5000]
    other[5000:9000] = one[5000:9000]
    return one, other


def special(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every number that is one of a kind beside every other."""
    both = SPECIAL.repeat(len(SPECIAL)), SPECIAL.repeat_interleave(len(SPECIAL))
    times = compiled.MANY // len(both[0]) + 1
    return both[0].repeat(times).to(dtype), both[1].repeat(times).to(dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; NaN is NaN."""
    words = torch.int32 if one.dtype is torch.float32 else torch.int64
    return bool(((one.view(words) == other.view(words)) | (one.isnan() & other.isnan())).all())


def test_they_are_used() -> None:
    assert compiled.loops(torch.zeros(COUNT)) is not None
    assert compiled.loops(torch.zeros(COUNT), torch.zeros(2 * COUNT)[::2]) is None
    assert compiled.loops(torch.zeros(compiled.MANY - 1)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.4, 0.5, 1e-9, 0.999])
def test_the_mean_of_those_that_agree(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, ratio: float) -> None:
    for pair in (changes(1, dtype), special(dtype)):
        base = pair[0].flip(0)
        mean = agreed(*(x.clone() for x in pair), ratio, base, 0.7)
        with torch_alone(monkeypatch):
            assert same(mean, agreed(*(x.clone() for x in pair), ratio, base, 0.7))


@pytest.mark.parametrize("n", [4, COUNT])
def test_a_weighted_sum_of_nearly_zero(n: int) -> None:
    """It once was NaN by torch's operations, and a number by the loop."""
    merged = agreed(torch.zeros(n), torch.full((n,), -(2.0**-124)), 0.5, torch.zeros(n), 1.0)
    assert torch.equal(merged, torch.full((n,), -(2.0**-124)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Slerp's weights; the sums are added up in another order."""
    sft, rlhf = (torch.randn(COUNT, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in (6, 7))
    rlhf += sft
    chunks = Chunks(COUNT, lambda every, first: iter([{"sft": sft, "rlhf": rlhf}]))
    weights = bind("slerp", {}).prepare(chunks, 0.3)
    with torch_alone(monkeypatch):
        assert weights == pytest.approx(bind("slerp", {}).prepare(chunks, 0.3), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [0, 12_345, (1 << 32) - 1000, 1 << 40])
def test_drops(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, first: int) -> None:
    for pair in (changes(2, dtype), special(dtype)):
        for density in (0.0, 0.3, 0.5, 1.0):
            dropped = drop(*(x.clone() for x in pair), Chunk("a.weight", first), density, 7)
            with torch_alone(monkeypatch):
                others = drop(*(x.clone() for x in pair), Chunk("a.weight", first), density, 7)
            assert all(map(same, dropped, others))


@pytest.mark.parametrize("which", [0, 1])
def test_a_number_that_is_the_limit_drops(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    chunk, place = Chunk("a.weight", 77), 4321
    density = (int(numbers(chunk, COUNT, 7, torch.device("cpu"))[which][place]) + WORD // 4) / (WORD // 2)
    dropped = drop(torch.ones(COUNT), torch.ones(COUNT), chunk, density, 7)
    with torch_alone(monkeypatch):
        assert all(map(same, dropped, drop(torch.ones(COUNT), torch.ones(COUNT), chunk, density, 7)))
    assert dropped[which][place] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuts_among_equal_elements(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Right before one of them, right after it, and anywhere else, for the smallest that stay and for the largest that go."""
    model = torch.randint(-3, 4, (COUNT,), generator=torch.Generator().manual_seed(8)).to(dtype)
    tensors, first = {"base": torch.zeros(COUNT, dtype=dtype), "sft": model}, 1000
    one, two = (first + int((model.abs() == size).nonzero()[999]) for size in (1, 2))
    bits = [int(torch.tensor(size).view(torch.int32)) for size in (1.0, 2.0)]
    for i in (-1, 0, 1):
        bottom, top = Cut(bits[0], one + i), Cut(bits[1], two + i)
        for given in [(bottom,), (bottom, top), (EVERYTHING, top), (bottom, NOTHING)]:
            found = trimmed(tensors, "sft", first, *given)
            with torch_alone(monkeypatch):
                assert torch.equal(found, trimmed(tensors, "sft", first, *given))
    kept = trimmed(tensors, "sft", first, Cut(bits[0], one + 1), Cut(bits[1], two))
    assert int((kept.abs() == 1).sum()) == 1000
    assert int((kept.abs() == 2).sum()) == int((model.abs() == 2).sum()) - 999


@pytest.mark.parametrize("kind", KINDS)
def test_cuts(monkeypatch: pytest.MonkeyPatch, kind: Callable[[np.random.Generator], np.ndarray]) -> None:
    draws = np.random.default_rng(3)
    sft, rlhf = (torch.tensor(kind(draws)).float() for _ in range(2))
    monkeypatch.setattr(compiled, "MANY", 1)  # they come in smaller blocks
    chunks, _ = chunks_of(torch.zeros_like(sft), sft, rlhf)
    found = cuts(chunks, lambda count: RANKS)
    with torch_alone(monkeypatch):
        assert found == cuts(chunks, lambda count: RANKS)


@pytest.mark.parametrize("method", ["dare", "dare_ties", "ties", "della", "breadcrumbs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_methods(monkeypatch: pytest.MonkeyPatch, method: str, dtype: torch.dtype) -> None:
    """In one chunk of two, so that prepare and the kernel both go through them."""
    one, other = changes(4, dtype)
    base = torch.randn(COUNT, generator=torch.Generator().manual_seed(5), dtype=dtype) * 0.02
    models = {"base": base, "sft": base + one, "rlhf": base + other}

    def merged() -> torch.Tensor:
        bound = bind(method, {})
        chunks = Chunks(COUNT, lambda every, first: iter([{k: v[first::every].clone() for k, v in models.items()}]))
        given = {"stats": bound.prepare(chunks, 0.4)} if bound.prepare else {}
        if bound.wants_chunk:
            given["chunk"] = Chunk("a.weight", 0)
        result: torch.Tensor = bound.kernel({k: v.clone() for k, v in models.items()}, 0.4, None, **given)
        return result

    ours = merged()
    with torch_alone(monkeypatch):
        theirs = merged()
    assert same(ours, theirs)


FULL = """
import resource, sys
import torch
from amatax.methods import _compiled as compiled, _loops
if sys.argv[1:] == ["nothing may be written"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
x, y, z = torch.full((compiled.MANY,), 1.0), torch.full((compiled.MANY,), 4.0), torch.zeros(compiled.MANY)
for _ in range(2):
    _loops.trim(*map(compiled.array, (x, y, z)), 0, 3.5, 0, 9.0, 0)
    assert z.tolist() == [0.0] * compiled.MANY
_loops.trim(*map(compiled.array, (x, y, z)), 0, 2.5, 0, 9.0, 0)
assert z.tolist() == [3.0] * compiled.MANY
"""


def run_with_cache(folder: Path, *arguments: str) -> None:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_takes_no_byte(tmp_path: Path) -> None:
    """Files can be made in it, and nothing written: loops are compiled in memory."""
    run_with_cache(tmp_path / "c", "nothing may be written")
    assert not any(file.stat().st_size for file in (tmp_path / "c").rglob("*") if file.is_file())
    run_with_cache(tmp_path / "d")
    assert any(file.stat().st_size for file in (tmp_path / "d").rglob("*.nbc"))


def test_a_cache_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 12) as disk:
        run_with_cache(disk / "c")
        assert not list(disk.rglob("*.nbc"))
