"""Cuts against a stable sort, by each of the ways they are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from amatax.methods import Chunks
from amatax.methods import _selection as selection
from amatax.methods._magnitudes import trim
from amatax.methods._selection import cuts

COUNT, BLOCK = 120_000, 1 << 14  # more than are taken without a sample
RANKS = (1, 12, 1200, 36_000, 60_000, 108_000, COUNT - 1)


def chunks_of(base: torch.Tensor, sft: torch.Tensor, rlhf: torch.Tensor) -> tuple[Chunks, list[int]]:
    """The chunks of three models, and a list that gets the share of each pass through them."""
    passes: list[int] = []

    def through(every: int, first: int) -> Iterator[dict[str, torch.Tensor]]:
        passes.append(every)
        for begin in range(first, len(base), BLOCK):
            piece = slice(begin, begin + BLOCK, every)
            yield {"base": base[piece].clone(), "sft": sft[piece].clone(), "rlhf": rlhf[piece].clone()}

    return Chunks(len(base), through), passes


def by_sorting(change: torch.Tensor, rank: int) -> np.ndarray:
    """Which elements stand before the cut; NaN always does, and takes no rank."""
    sizes = np.abs(change.to(torch.float32).numpy())
    order = np.argsort(-np.where(np.isnan(sizes), -1, sizes), kind="stable")
    kept = np.isnan(sizes)
    kept[order[:rank]] = True
    return kept


def normal(draws: np.random.Generator) -> np.ndarray:
    return draws.normal(0, 2e-4, COUNT)


def heavy(draws: np.random.Generator) -> np.ndarray:
    """Half of the elements have one of three magnitudes."""
    return np.where(
        draws.random(COUNT) < 0.5, draws.choice([-0.25, 0.25, 0.5, 1.0], COUNT), draws.normal(0, 0.5, COUNT)
    )


def lattice(draws: np.random.Generator) -> np.ndarray:
    """A dozen magnitudes, as of half precision after a short training."""
    return np.round(draws.normal(0, 3, COUNT)) / 1024


def frozen(draws: np.random.Generator) -> np.ndarray:
    return np.zeros(COUNT)


def sparse(draws: np.random.Generator) -> np.ndarray:
    return np.where(draws.random(COUNT) < 0.1, draws.normal(0, 1, COUNT), 0)


def rows(draws: np.random.Generator) -> np.ndarray:
    """Rows and columns of very different sizes."""
    scales = np.exp(draws.normal(0, 2, (COUNT // 240, 1)) + draws.normal(0, 2, (1, 240)))
    return (draws.normal(0, 1, (COUNT // 240, 240)) * scales).ravel()


def misleading(draws: np.random.Generator) -> np.ndarray:
    """What the sample sees is a hundred times smaller than the rest."""
    change = draws.normal(0, 1, COUNT)
    for begin in range(0, COUNT, BLOCK):
        change[begin : begin + BLOCK : selection.EVERY[0]] /= 100
    return change


def infinite(draws: np.random.Generator) -> np.ndarray:
    change = draws.normal(0, 1, COUNT)
    change[draws.choice(COUNT, 30, replace=False)] = np.inf
    return change


KINDS = (normal, heavy, lattice, frozen, sparse, rows, misleading, infinite)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_are_those_of_a_stable_sort(kind: Callable[[np.random.Generator], np.ndarray], dtype: torch.dtype) -> None:
    draws = np.random.default_rng(1)
    zero = torch.zeros(COUNT)
    models = [
        torch.tensor(kind(draws)).to(dtype).to(torch.float64 if dtype is torch.float64 else torch.float32)
        for _ in range(2)
    ]
    zero = zero.to(models[0].dtype)
    chunks, _ = chunks_of(zero, *models)
    for change, found in zip(models, cuts(chunks, lambda count: RANKS), strict=True):
        for rank, cut in zip(RANKS, found, strict=True):
            want = by_sorting(change, rank) & (change != 0).numpy()
            got = torch.cat([trim(change[i : i + BLOCK], cut, i) for i in range(0, COUNT, BLOCK)])
            assert ((got != 0).numpy() == want).all(), rank


def only(rank: int, count: int) -> list[int]:
    return [rank]


@pytest.mark.parametrize("where", [0, 7, COUNT // 2])
def test_nan_stands_before_every_cut_and_takes_no_rank(where: int) -> None:
    """Seen by the sample (element 0) or not."""
    draws = np.random.default_rng(2)
    change = torch.tensor(normal(draws)).float()
    change[where] = float("nan")
    chunks, _ = chunks_of(torch.zeros(COUNT), change, change)
    for rank in RANKS:
        (cut,), _ = cuts(chunks, partial(only, rank))
        assert ((trim(change, cut, 0) != 0).numpy() == by_sorting(change, rank) & (change != 0).numpy()).all()


@pytest.mark.parametrize(
    ("kind", "passes"),
    [(normal, [31, 1]), (rows, [31, 1]), (frozen, [31, 1]), (heavy, [31, 1]), (lattice, [31, 1, 1, 1])],
)
def test_one_pass_is_enough(kind: Callable[[np.random.Generator], np.ndarray], passes: Sequence[int]) -> None:
    chunks, seen = chunks_of(
        *(torch.tensor(x).float() for x in (np.zeros(COUNT), *(kind(np.random.default_rng(i)) for i in range(2))))
    )
    cuts(chunks, lambda count: [count // 2])  # of a lattice the block that holds the cut is read again, for each model
    assert seen == list(passes)


def test_what_is_kept_of_a_pass_is_in_one_piece() -> None:
    """Many small pieces of memory between large ones tore the heap: 128 M float32 changes took 750 MB."""
    draws = torch.Generator().manual_seed(0)
    tally = selection._Tally(selection._Wanted(0, 0, 1), selection._Bracket(1, selection.INFINITE, False, False))
    whole = torch.randn(200_000, generator=draws)
    for begin in range(0, len(whole), 1000):
        tally.add(torch.zeros(1000), whole[begin : begin + 1000], begin)
    assert torch.equal(tally.where[: tally.between], torch.arange(len(whole)))
    assert torch.equal(tally.sizes[: tally.between], whole.abs())
    assert len(tally.sizes) <= 2 * len(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_stays_where_nothing_else_does(dtype: torch.dtype) -> None:
    change = torch.tensor([1.0, float("nan"), 2.0], dtype=dtype)
    assert trim(change, selection.NOTHING, 0).isnan().tolist() == [False, True, False]


def test_too_many_to_pick_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second way gives the same cuts."""
    models = [torch.tensor(kind(np.random.default_rng(3))).bfloat16().float() for kind in (normal, heavy)]
    chunks, seen = chunks_of(torch.zeros(COUNT), *models)
    usual = cuts(chunks, lambda count: RANKS)
    monkeypatch.setattr(selection, "MOST", 100)
    seen.clear()
    assert cuts(chunks, lambda count: RANKS) == usual
    assert len(seen) > 2
