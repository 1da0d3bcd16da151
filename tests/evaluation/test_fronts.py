"""Fronts, areas and corners by hand; areas against a sum over a fine grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amatax.errors import DataError
from amatax.evaluation.choice import choose
from amatax.evaluation.fronts import (
    Corners,
    area,
    constant,
    corners,
    front,
    hypervolume,
    hypervolume_difference,
    pairs,
    pareto,
    sides,
    without_error,
)
from amatax.evaluation.results import Measured, half_of
from amatax.evaluation.words import sentences
from tests.evaluation.tables import ABILITIES, KL, LENGTH, REWARD, table

ROWS = {
    "sft": [0.2, 0.9, 0.0, 10],
    "rlhf": [0.8, 0.5, 0.4, 50],
    "uniform 0.3": [0.3, 0.9, 0.1, 30],  # beats SFT: as able, and a better reward
    "uniform 0.6": [0.7, 0.8, 0.2, 40],
    "fitted-3 0.6": [0.75, 0.7, 0.1, 40],
    "fitted-3 0.8": [0.7, 0.6, 0.3, 45],  # uniform 0.6 is better in abilities, and as good in the reward
}
MEASURES = (REWARD, ABILITIES, KL, LENGTH)


def test_what_gained_and_what_paid() -> None:
    results = table(MEASURES, ROWS)
    assert sides(results.measures, corners(results)) == {"gain": ["reward"], "tax": ["abilities", "kl"]}
    assert pairs(results) == [("reward", "abilities"), ("reward", "kl")]


def test_normalised_to_the_two_models() -> None:
    assert Corners(0.2, 0.8).normalised(REWARD, np.array([0.2, 0.5, 0.8, 1.1])).tolist() == pytest.approx(
        [0, 0.5, 1, 1.5]
    )
    assert Corners(0.0, 0.4).normalised(KL, np.array([0.0, 0.1, 0.4])).tolist() == pytest.approx([1, 0.75, 0])
    assert Corners(0.3, 0.3).side(REWARD) is None
    assert Corners(1.0, 2.0).side(LENGTH) is None
    assert Corners(0.3, float("nan")).side(REWARD) is None


def test_points_that_none_beats() -> None:
    results = table(MEASURES, ROWS)
    names = [p.name for p in front(results, ("reward", "abilities"))]
    assert names == ["uniform 0.3", "uniform 0.6", "fitted-3 0.6", "rlhf"]
    assert [p.name for p in front(results, ("reward", "kl"))] == ["sft", "fitted-3 0.6", "rlhf"]  # less KL is better
    assert [p.name for p in front(results, ("reward", "abilities"), ["fitted-3"])] == ["fitted-3 0.6"]


def test_equal_points_are_both_on_the_front_and_nan_on_none() -> None:
    assert pareto(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [np.nan, 9.0], [0.0, 1.0]])) == [0, 1, 4]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_a_front_is_what_its_definition_says(points: list[tuple[int, int, int]]) -> None:
    values = np.array(points, dtype=float)
    beaten = [any(all(a >= b for a, b in zip(q, p, strict=True)) and q != p for q in points) for p in points]
    assert pareto(values) == [i for i, lost in enumerate(beaten) if not lost]


def test_areas_by_hand() -> None:
    assert area(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 0  # the two models
    assert area(np.array([1.0]), np.array([1.0])) == 1  # no tax
    assert area(np.array([0.5, 0.8, 0.4]), np.array([0.9, 0.5, 0.4])) == pytest.approx(0.5 * 0.9 + 0.3 * 0.5)
    assert area(np.array([-0.5, 0.5]), np.array([2.0, -1.0])) == 0
    line = np.linspace(0, 1, 1001)
    assert area(line, 1 - line) == pytest.approx(0.5, abs=1e-3)


@given(st.lists(st.tuples(st.integers(-2, 12), st.integers(-2, 12)), min_size=1, max_size=8))
def test_an_area_is_the_cells_that_are_covered(points: list[tuple[int, int]]) -> None:
    cells = sum(any(x > i and y > j for x, y in points) for i in range(12) for j in range(12))
    gain, tax = np.array(points, dtype=float).T
    assert area(gain, tax) == cells


def test_hypervolume_between_the_two_models() -> None:
    results = table(MEASURES, ROWS, spread=0.05)
    points = [p for p in results.points if p.kind == "fitted-3"]
    found = hypervolume(results, "reward", "abilities", points)
    assert found.points == 2
    assert found.interval.value == pytest.approx(0.55 / 0.6 * (0.2 / 0.4))  # noise is shared: the means stay
    one = [p for p in results.points if p.name == "uniform 0.6"]
    value, low, high = hypervolume_difference(results, "reward", "abilities", one, one)
    assert (value, low, high) == (0, 0, 0)
    with pytest.raises(DataError, match="kl is no gain"):
        hypervolume(results, "kl", "abilities", points)


def test_an_area_is_as_sure_as_its_data() -> None:
    """Its interval holds the truth as often as it says: one point, whose share of the gain is known, and no noise in the tax."""
    from amatax.evaluation.results import Point, Results
    from tests.evaluation.tables import exactly, scores

    random, held = np.random.default_rng(0), 0
    for _ in range(100):
        drawn = {n: scores(random.normal(mean, 0.3, 60)) for n, mean in (("sft", 0.0), ("rlhf", 1.0), ("x", 0.6))}
        taxes = {"sft": 1.0, "rlhf": 0.0, "x": 0.5}
        points = [Point(n, n, None, {}, {"reward": d, "abilities": exactly(taxes[n], 60)}) for n, d in drawn.items()]
        found = hypervolume(
            Results({"reward": REWARD, "abilities": ABILITIES}, tuple(points)), "reward", "abilities", points[2:], 1
        )
        held += found.interval.low <= 0.3 <= found.interval.high
    assert held == pytest.approx(95, abs=4 * np.sqrt(100 * 0.95 * 0.05))


def test_without_the_two_models_there_is_no_front() -> None:
    with pytest.raises(DataError, match="the RLHF model was not measured"):
        pairs(table(MEASURES, {"sft": ROWS["sft"]}))


def test_measures_that_say_nothing() -> None:
    """One value at every point, whatever its halves; and values that differ though no sample does."""
    rows = {"sft": [0.2, 0.5, 1.0], "rlhf": [0.8, 0.5, 1.0], "uniform 0.5": [0.5, 0.5, 1.0]}
    found = table([REWARD, ABILITIES, KL], rows)
    assert constant(found) == {"abilities": 0.5, "kl": 1.0}
    assert without_error(found) == ["reward"]
    assert without_error(table([REWARD, ABILITIES], {name: row[:2] for name, row in rows.items()}, spread=0.1)) == []
    nothing = replace(found.points[0].measured["kl"], sums=np.zeros((80, 2)))
    points = [replace(p, measured={**p.measured, "kl": nothing}) for p in found.points]
    assert np.isnan(constant(replace(found, points=tuple(points)))["kl"])
    none = "there is nothing to choose by"
    with pytest.raises(DataError, match=none):
        choose(replace(found, measures={"abilities": ABILITIES, "kl": KL}))


def test_a_constant_measure_counts_for_nothing_on_one_half() -> None:
    """The same at every point in all, but not on the half that chooses: luck is no gain."""
    found = table([REWARD, ABILITIES], {"sft": [0.2, 0.5], "rlhf": [0.8, 0.5], "uniform 0.5": [0.5, 0.5]}, spread=0.1)
    halves = np.array(
        [1.0 if half_of(sample) == "choose" else 0.0 for sample in found.points[0].measured["reward"].samples]
    )
    turned = {"sft": halves, "rlhf": 1 - halves, "uniform 0.5": halves}
    even = min(int(halves.sum()), int((1 - halves).sum()))
    keep = np.sort(np.concatenate([np.flatnonzero(halves == side)[:even] for side in (0, 1)]))

    def cut(measured: Measured, column: Any = None) -> Measured:
        sums = measured.sums.copy()
        if column is not None:
            sums[:, 0] = column
        return Measured(sums[keep], tuple(measured.samples[i] for i in keep))

    points = [
        replace(
            p, measured={"reward": cut(p.measured["reward"]), "abilities": cut(p.measured["abilities"], turned[p.name])}
        )
        for p in found.points
    ]
    found = replace(found, points=tuple(points))
    assert constant(found) == {"abilities": 0.5}
    choice = choose(found)
    assert "abilities" not in choice.rule.in_words()
    assert not any("gain in abilities" in text or "tax in abilities" in text for text in sentences(found, choice))
