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
from amatax.methods._magnitudes import EVERYTHING, NOTHING, Cut
from amatax.methods._random import WORD, numbers
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


def merged(
    method: str,
    models: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ratio: float = 0.4,
    *,
    first: int = 0,
    out: torch.Tensor | None = None,
    stats: object = None,
    **options: float,
) -> torch.Tensor:
    """A kernel's result for base, SFT and RLHF."""
    tensors = {role: model.clone() for role, model in zip(("base", "sft", "rlhf"), models, strict=True)}
    given = {"stats": stats} if stats else {}
    result: torch.Tensor = bind(method, options).kernel(tensors, ratio, out, chunk=Chunk("a.weight", first), **given)
    return result


def of_changes(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Models of which these are the changes, exactly."""
    return torch.zeros_like(pair[0]), *pair


ALL = [(EVERYTHING,), (EVERYTHING,)]  # TIES cuts nothing off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.4, 0.5, 1e-9, 0.999])
def test_the_mean_of_those_that_agree(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, ratio: float) -> None:
    for pair in (changes(1, dtype), special(dtype)):
        for models in (of_changes(pair), (pair[0].flip(0), *pair)):
            mean = merged("ties", models, ratio, stats=ALL, scale=0.7)
            with torch_alone(monkeypatch):
                assert same(mean, merged("ties", models, ratio, stats=ALL, scale=0.7))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.3, -0.2])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_ratios_outside(monkeypatch: pytest.MonkeyPatch, method: str, ratio: float) -> None:
    """Of the mean torch sees to them, of the sum the loop."""
    models, stats = of_changes(changes(1, torch.float32)), ALL if method == "ties" else None
    found = merged(method, models, ratio, stats=stats, scale=0.7)
    with torch_alone(monkeypatch):
        assert same(found, merged(method, models, ratio, stats=stats, scale=0.7))


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "della", "breadcrumbs"])
@pytest.mark.parametrize("read", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("written", [torch.bfloat16, torch.float32, torch.float16, None])
def test_memory_for_the_result(method: str, read: torch.dtype, written: torch.dtype | None) -> None:
    """It is rounded once to bfloat16, of equally near ones to the even one; memory that the loop cannot fill is left alone."""
    one, other = changes(4, torch.float32)
    base = torch.randn(COUNT, generator=torch.Generator().manual_seed(5)) * 0.02
    base[:40_000], one[:40_000] = 1.0, 0.0
    other[:40_000] = (torch.arange(40_000) % 7 - 3) * 2.0**-9  # halves of bfloat16's steps, when 0.5 of them is taken
    models = tuple(x.to(read) for x in (base, base + one, base + other))
    tensors = dict(zip(("base", "sft", "rlhf"), models, strict=True))
    bound = bind(method, {})
    stats = bound.prepare(Chunks(COUNT, lambda every, first: iter([tensors])), 0.5) if bound.prepare else None
    exact = merged(method, models, 0.5, stats=stats)
    assert exact.dtype is torch.float32
    memory = None if written is None else torch.full((COUNT,), 7.0, dtype=written)
    found = merged(method, models, 0.5, out=memory, stats=stats)
    assert (found is memory) == (written in (torch.bfloat16, torch.float32))
    assert torch.equal(found, exact.to(found.dtype))
    assert found is memory or memory is None or bool((memory == 7).all())


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties"])
def test_no_change_has_no_sign(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Zeros of unlike sign on a base of -0: 0 in every element, by vectors, one by one, and by the loop."""
    sft = torch.tensor([0.0, -0.0, 0.0, -0.0, 1e-40]).repeat(COUNT // 5 + 1)[:COUNT]
    rlhf = torch.tensor([0.0, 0.0, -0.0, -0.0, -1e-40]).repeat(COUNT // 5 + 1)[:COUNT]
    stats, options = ([(NOTHING,), (NOTHING,)], {}) if method == "ties" else (None, {"density": 0.0})
    models = torch.full((COUNT,), -0.0), sft, rlhf
    for ratio in (0.4, 1.2):
        found = merged(method, models, ratio, stats=stats, **options)
        assert not found.view(torch.int32).any()
        with torch_alone(monkeypatch):
            assert not merged(method, models, ratio, stats=stats, **options).view(torch.int32).any()


def test_the_sample_stays_as_it_was_drawn() -> None:
    """How unlike its rows are is told from it after it was sorted."""
    sample = torch.tensor([3, 1, 2], dtype=torch.int32)
    assert compiled.in_order(sample, compiled.MANY).tolist() == [1, 2, 3]
    assert sample.tolist() == [3, 1, 2]


def test_special_numbers_in_bfloat16() -> None:
    numbers = torch.cat([SPECIAL, torch.tensor([3.3895e38, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -1e-40, torch.nan])])
    numbers = numbers.repeat(compiled.MANY // len(numbers) + 1)
    out = torch.empty(len(numbers), dtype=torch.bfloat16)
    models = numbers, numbers, numbers
    found = merged("ties", (torch.zeros_like(numbers), *models[1:]), 0.5, stats=ALL, out=out)
    want = merged("ties", (torch.zeros_like(numbers), *models[1:]), 0.5, stats=ALL).to(torch.bfloat16)
    assert found is out
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found.nan_to_num(1.5).view(torch.int16), want.nan_to_num(1.5).view(torch.int16))


def test_the_result_may_take_a_models_place() -> None:
    models = of_changes(changes(3, torch.float32))
    want = merged("dare_ties", models)
    for i in range(3):
        given = [model.clone() for model in models]
        tensors = dict(zip(("base", "sft", "rlhf"), given, strict=True))
        bind("dare_ties", {}).kernel(tensors, 0.4, given[i], chunk=Chunk("a.weight", 0))
        assert torch.equal(given[i], want)


@pytest.mark.parametrize("n", [4, COUNT])
def test_a_weighted_sum_of_nearly_zero(n: int) -> None:
    """It once was NaN by torch's operations, and a number by the loop."""
    models = torch.zeros(n), torch.zeros(n), torch.full((n,), -(2.0**-124))
    assert torch.equal(merged("ties", models, 0.5, stats=ALL), torch.full((n,), -(2.0**-124)))


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
@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_drops(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, first: int, method: str) -> None:
    for pair in (changes(2, dtype), special(dtype)):
        for density in (0.0, 0.3, 0.5, 1.0):
            found = merged(method, of_changes(pair), first=first, density=density, seed=7)
            with torch_alone(monkeypatch):
                assert same(found, merged(method, of_changes(pair), first=first, density=density, seed=7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_that_are_added(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    kernel = bind("model_stock", {}).kernel
    for pair in (changes(6, dtype), special(dtype)):
        models = dict(zip(("base", "sft", "rlhf"), (pair[0].flip(0), *pair), strict=True))
        found = kernel({role: model.clone() for role, model in models.items()}, 0.3, stats=0.8)
        with torch_alone(monkeypatch):
            assert same(found, kernel({role: model.clone() for role, model in models.items()}, 0.3, stats=0.8))


@pytest.mark.parametrize("which", [0, 1])
def test_a_number_that_is_the_limit_drops(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    chunk, place = Chunk("a.weight", 77), 4321
    density = (int(numbers(chunk, COUNT, 7, torch.device("cpu"))[which][place]) + WORD // 4) / (WORD // 2)
    alone = [torch.zeros(COUNT), torch.zeros(COUNT)]
    alone[which] += 1
    found = merged("dare", (torch.zeros(COUNT), *alone), 0.5, first=77, density=density, seed=7)
    with torch_alone(monkeypatch):
        assert same(found, merged("dare", (torch.zeros(COUNT), *alone), 0.5, first=77, density=density, seed=7))
    assert found[place] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuts_among_equal_elements(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Right before one of them, right after it, and anywhere else, for the smallest that stay and for the largest that go."""
    model = torch.randint(-3, 4, (COUNT,), generator=torch.Generator().manual_seed(8)).to(dtype)
    models, first = (torch.zeros(COUNT, dtype=dtype), model, model.flip(0)), 1000
    one, two = (first + int((model.abs() == size).nonzero()[999]) for size in (1, 2))
    bits = [int(torch.tensor(size).view(torch.int32)) for size in (1.0, 2.0)]
    for i in (-1, 0, 1):
        bottom, top = Cut(bits[0], one + i), Cut(bits[1], two + i)
        for ends in [(NOTHING, bottom), (top, bottom), (top, EVERYTHING), (NOTHING, EVERYTHING)]:
            found = merged("breadcrumbs", models, 0.5, first=first, stats=[ends, (NOTHING, EVERYTHING)])
            with torch_alone(monkeypatch):
                assert torch.equal(
                    found, merged("breadcrumbs", models, 0.5, first=first, stats=[ends, (NOTHING, EVERYTHING)])
                )
    ends = Cut(bits[1], two), Cut(bits[0], one + 1)
    kept = merged("breadcrumbs", models, 0.0, first=first, stats=[ends, ends])
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

    def once() -> torch.Tensor:
        bound = bind(method, {})
        chunks = Chunks(COUNT, lambda every, first: iter([{k: v[first::every].clone() for k, v in models.items()}]))
        given = {"stats": bound.prepare(chunks, 0.4)} if bound.prepare else {}
        if bound.wants_chunk:
            given["chunk"] = Chunk("a.weight", 0)
        result: torch.Tensor = bound.kernel({k: v.clone() for k, v in models.items()}, 0.4, None, **given)
        return result

    ours = once()
    with torch_alone(monkeypatch):
        theirs = once()
    assert same(ours, theirs)


FULL = """
import resource, sys
import torch
from amatax.methods import _compiled as compiled, _loops
if sys.argv[1:] == ["nothing may be written"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
x, y, z = torch.full((compiled.MANY,), 1.0), torch.full((compiled.MANY,), 4.0), torch.zeros(compiled.MANY)
for _ in range(2):
    _loops.change(*map(compiled.array, (x, y, z)))
    assert z.tolist() == [3.0] * compiled.MANY
_loops.change(*map(compiled.array, (y, x, z)))
assert z.tolist() == [-3.0] * compiled.MANY
"""


NO_JIT = """
import torch
from amatax.methods import _compiled as compiled, bind, Chunk
torch.manual_seed(0)
models = {role: torch.randn(compiled.MANY).bfloat16() for role in ("base", "sft", "rlhf")}
out = torch.empty(compiled.MANY, dtype=torch.bfloat16)
print(bind("dare_ties", {}).kernel(models, 0.4, out, chunk=Chunk("a", 0)).bfloat16().view(torch.int16).sum())
"""


def test_without_the_compiler_torch_does_it() -> None:
    """By NUMBA_DISABLE_JIT the loops would be plain Python, which takes bfloat16's bits for numbers."""
    said = [
        subprocess.run(
            [sys.executable, "-c", NO_JIT], env={**os.environ, **env}, capture_output=True, check=True
        ).stdout
        for env in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    assert said[0] == said[1]


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
