"""Verdicts on data whose truth is known, and the page that says them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.reproduce.claims import Claim, all_claims, best_uniform
from benchmarks.reproduce.contrasts import area_of, between_points, of_fronts, of_ways
from benchmarks.reproduce.grid import FIRST, RATIOS, SEEDS, UNIFORM, Sweep, sweeps
from benchmarks.reproduce.page import page
from benchmarks.reproduce.pictures import draw_fronts, draw_shares
from benchmarks.reproduce.running import begin_journal
from benchmarks.reproduce.table import Table, read_table
from benchmarks.reproduce.verdicts import Contrast, judge, judge_any_apart

from amatax.errors import DataError
from amatax.evaluation.files import write_results
from amatax.evaluation.journal import Journal
from amatax.evaluation.results import Measure, Measured, Point, Results
from amatax.fitting.bootstrap import Interval
from tests.evaluation.tables import ABILITIES, KL, LENGTH, REWARD, exactly, ratio, scores

NLL = Measure("nll", "nll", False, ratio, {"data": "keep.jsonl"})
MEASURES = (ABILITIES, REWARD, LENGTH, KL, NLL)
ENDS = {"sft": (0.9, 0.2), "rlhf": (0.5, 0.8)}  # abilities, reward
Truth = Callable[[str, float, int], tuple[float, float]]  # way, ratio, seed


def above(*seeds: float, low: float = 0.1) -> Contrast:
    return Contrast(Interval(0.2, low, 0.3), seeds)


ABOVE, OPEN = above(0.1, 0.2, 0.3), above(0.1, 0.2, 0.3, low=-0.1)
BELOW = Contrast(Interval(-0.2, -0.3, -0.1), (-0.2,))


def test_what_an_interval_and_the_seeds_say() -> None:
    assert (ABOVE.side, OPEN.side, BELOW.side) == ("above", "open", "below")
    assert above(0.5, 0.3, -0.01).side == "open"  # sure on these samples, but not of one sign in every seed
    assert BELOW._replace(seeds=(-0.5, 0.0)).side == "open"
    assert above(0.2, low=0.0).side == "open"


def test_a_claim_of_several_differences() -> None:
    assert judge([ABOVE, ABOVE]) == "confirmed"
    assert judge([ABOVE, OPEN]) == "indistinguishable"
    assert judge([ABOVE, OPEN, BELOW]) == "not confirmed"
    assert judge_any_apart([OPEN, BELOW]) == "confirmed"
    assert judge_any_apart([OPEN, OPEN]) == "indistinguishable"
    with pytest.raises(ValueError):
        judge([])


def test_equally_good_is_seldom_told_apart() -> None:
    """Two points of one truth, drawn 120 times: a 95 % interval is wrong in about one of twenty."""
    random, sides = np.random.default_rng(0), []
    for _ in range(120):
        pairs = [[tuple(_point(scores(random.normal(0.5, 0.2, 60))) for _ in range(2))]]
        sides.append(between_points(Results({"reward": REWARD}, ()), "reward", pairs).side)
    assert 1 <= 120 - sides.count("open") <= 14


def test_better_is_found_and_less_is_better_of_a_likelihood() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.5, 0.2, 100)
    one, other = _point(scores(values + 0.05)), _point(scores(values + random.normal(0, 0.05, 100)))
    assert between_points(Results({"reward": REWARD}, ()), "reward", [[(one, other)]]).side == "above"
    both = [replace(p, measured={"nll": p.measured["reward"]}) for p in (one, other)]
    assert between_points(Results({"nll": NLL}, ()), "nll", [[(both[0], both[1])]]).side == "below"


def _point(measured: Measured) -> Point:
    return Point("p", "p", measured={"reward": measured})


def truth(way: str, alpha: float, seed: int) -> tuple[float, float]:
    """(abilities, reward): uniform averages above the straight line, the others as far from them as their names are given here."""
    abilities, reward = 0.9 - 0.4 * alpha**2, 0.2 + 0.6 * alpha**0.5
    add = {
        "fitted-3": (0.0, 0.05),
        "fitted-6": (0.0, (0.05, -0.05, 0.05)[seed]),
        "fitted-9": (-0.05, -0.05),
        "tax-aware-3": (0.05, 0.1),
        "parts-input": (0.05, 0.05),
        "parts-output": (-0.05, -0.05),
        "ties 0.2": (-0.05, 0.0),
        "dare 0.5": (0.02, 0.0),
    }.get(way, (0.0, 0.0))
    return abilities + add[0], reward + add[1]


def measured(
    work: Path, way_is: Truth = truth, models: Callable[[str], tuple[float, float]] = ENDS.__getitem__
) -> Path:
    """Every sweep's results, as if they had been measured."""
    for sweep in sweeps():
        points = [_at(kind, kind, models(kind)) for kind in ENDS]
        for kind, alpha in _points_of(sweep):
            place = way_is(sweep.label or kind, alpha, sweep.seed or 0)
            points.append(_at(f"{kind} {alpha:g}", kind, place, alpha))
        write_results(Results({m.name: m for m in MEASURES}, tuple(points)), work / sweep.name)
    return work


def _points_of(sweep: Sweep) -> list[tuple[str, float]]:
    if sweep == FIRST:
        return [("uniform", 0), ("uniform", 1)]
    kinds = ["uniform"]
    if sweep.data:
        kinds = [sweep.name.rpartition("-")[0]]
    elif sweep.name == "parts":
        kinds = [f"parts-{part}" for part in ("input", "middle", "output")]
    return [(kind, alpha) for kind in kinds for alpha in (UNIFORM if sweep.name == "uniform" else RATIOS)]


def _at(name: str, kind: str, place: tuple[float, float], alpha: float | None = None) -> Point:
    abilities, reward = place
    means = {"abilities": abilities, "reward": reward, "length": 10 * reward, "kl": 1 - abilities, "nll": 1 - abilities}
    samples = {n: exactly(mean, spread=0.1, seed=i) for i, (n, mean) in enumerate(means.items())}
    ratios = {} if alpha is None else {f"blocks.{i}": alpha for i in range(3)}
    return Point(name, kind, alpha, ratios, samples)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return read_table(measured(tmp_path_factory.mktemp("work")), sweeps())


@pytest.fixture(scope="module")
def claims(table: Table) -> list[Claim]:
    return all_claims(table)


def test_one_table_of_all_sweeps(table: Table) -> None:
    assert list(table.ways["fitted-9"]) == list(SEEDS) == list(table.ways["dare 0.8"])
    assert [p.name for p in table.points("uniform", 2)] == [f"uniform {r:g}" for r in UNIFORM]  # of every seed
    assert [p.name for p in table.points("fitted-3", 2)] == [f"fitted-3 {r:g} seed 2" for r in RATIOS]
    fitted = of_ways(table, "reward", "fitted-6", "uniform", RATIOS)
    assert fitted.seeds == pytest.approx((0.05, -0.05, 0.05))
    assert fitted.interval.value == pytest.approx(0.05 / 3)
    one = 0.2, 0.6 * 0.2**0.5  # the first ratio's share of the tax and of the gain
    assert len(area_of(table, "uniform", RATIOS[:1]).seeds) == 1
    assert area_of(table, "uniform", RATIOS[:1]).interval.value == pytest.approx((1 - one[0] ** 2) * one[1] / 0.6)


def test_claims_of_a_known_truth(claims: list[Claim]) -> None:
    found = {claim.title: claim.verdict for claim in claims}
    assert found == {
        "The alignment tax": "confirmed",
        "Averaging against a straight trade-off": "confirmed",
        "Parts differ": "confirmed",
        "The input part is the best to average": "confirmed",
        "The input part gains twice": "not confirmed",
        "AMA has more reward than uniform averaging at equal alpha": "fitted-3: confirmed; fitted-6: indistinguishable; "
        "fitted-9: not confirmed",
        "AMA keeps more abilities than uniform averaging at equal alpha": "fitted-3: indistinguishable; "
        "fitted-6: indistinguishable; fitted-9: not confirmed",
        "AMA has a better front than uniform averaging at the same alphas": "fitted-3: confirmed; "
        "fitted-6: indistinguishable; fitted-9: not confirmed",
        "AMA has a better front than the best uniform averages": "fitted-3: confirmed; fitted-6: indistinguishable; "
        "fitted-9: not confirmed",
        "Three blocks are better than six or nine": "fitted-3 - fitted-6: indistinguishable; fitted-3 - fitted-9: confirmed",
        "A small share costs nothing": "not confirmed",
        "Tax-aware fits have a better front than plain fits": "confirmed",
        "Tax-aware fits have a better front than uniform averaging at the same alphas": "confirmed",
        "Tax-aware fits have a better front than the best uniform averages": "confirmed",
        "Averaging has a better front than TIES": "uniform - ties 0.2: confirmed; uniform - ties 0.5: indistinguishable; "
        "uniform - ties 0.8: indistinguishable",
        "Averaging has a better front than DARE": "uniform - dare 0.2: indistinguishable; uniform - dare 0.5: not confirmed; "
        "uniform - dare 0.8: indistinguishable",
    }


def test_the_page_says_every_verdict_and_no_path(table: Table, claims: list[Claim], tmp_path: Path) -> None:
    text = page(table, claims)
    assert all(f"### {claim.title}: {claim.verdict}" in text for claim in claims)
    assert str(Path(__file__).parents[2]) not in text
    drawn = [draw(table, tmp_path).read_bytes() for draw in (draw_fronts, draw_shares, draw_shares)]
    assert drawn[1] == drawn[2]
    assert all(len(picture) < 150_000 for picture in drawn)


def test_several_looks_ask_for_more(table: Table) -> None:
    one, three = (of_fronts(table, "parts-input", "parts-middle", RATIOS, looks=looks).interval for looks in (1, 3))
    assert one.value == three.value
    assert three.low < one.low < one.high < three.high


def test_the_best_uniform_averages_are_chosen(table: Table) -> None:
    best = best_uniform(table)
    assert len(best) == len(RATIOS)
    assert best == (0.2, 0.5, 0.8)  # by hand: the largest sum of sqrt(a) - sqrt(the one before), times 1 - a^2
    areas = [area_of(table, "uniform", some).interval.value for some in (best, RATIOS, UNIFORM[:3], UNIFORM[-3:])]
    assert areas[0] == max(areas)


def test_a_journal_begins_with_both_models_and_nothing_else(tmp_path: Path) -> None:
    first, ours = tmp_path / "first.jsonl", tmp_path / "ours" / "journal.jsonl"
    with closing(Journal(first)) as journal:
        facts = (
            "model sft",
            "model rlhf",
            "model base",
            "output",
            "recipe",
            "device",
            "measure nll",
            "point sft",
            "point uniform 0.1",
        )
        for fact in facts:
            journal.fact(fact, fact)
        for name in ("sft", "rlhf", "uniform 0.1"):
            journal.add(name, "nll", exactly(0.5))
    begin_journal(first, ours)
    with closing(Journal(ours)) as journal:
        assert sorted(journal.facts) == ["device", "measure nll", "model rlhf", "model sft", "output", "point sft"]
        assert list(journal.measured) == [("sft", "nll"), ("rlhf", "nll")]
        journal.add("ties 0.2", "nll", exactly(0.5))
    known = ours.read_bytes()
    begin_journal(first, ours)
    assert ours.read_bytes() == known


def test_what_is_not_measured_yet_is_left_out(tmp_path: Path) -> None:
    done = [sweep for sweep in sweeps(SEEDS[:1]) if "aware" not in sweep.name and "-9-" not in sweep.name]
    table = read_table(measured(tmp_path), done)
    claims = all_claims(table)
    assert not any("Tax-aware" in claim.title for claim in claims)
    assert all("9" not in row.what for claim in claims for row in claim.rows)
    assert "Not measured yet: tax-aware-3-0." in page(table, claims, ["tax-aware-3-0"])


def test_models_that_come_out_otherwise_are_noticed(tmp_path: Path) -> None:
    measured(tmp_path)
    last = sweeps()[-1]
    shifted = {"sft": (0.9, 0.2), "rlhf": (0.5, 0.79)}
    points = [_at(kind, kind, place) for kind, place in shifted.items()]
    write_results(Results({m.name: m for m in MEASURES}, tuple(points)), tmp_path / last.name)
    with pytest.raises(DataError, match=f"{last.name}: reward of rlhf is not what it was"):
        read_table(tmp_path, sweeps())
