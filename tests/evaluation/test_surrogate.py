"""Quadratics: exact where the truth is one, honest where it is not; designs against every other design; proposals that are the best."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from amatax.errors import DataError
from amatax.evaluation.requirements import parse_requirement
from amatax.evaluation.results import Point, Results
from amatax.evaluation.surrogate import (
    block_ratios,
    confirmed_in_words,
    design,
    error_in_words,
    fit_surface,
    fit_surfaces,
    lattice,
    predicted_front,
    propose,
    terms,
)
from tests.evaluation.tables import ABILITIES, REWARD, exactly


def reward_at(a: np.ndarray) -> np.ndarray:
    return (
        0.2
        + 0.5 * a[..., 0]
        + 0.2 * a[..., 1]
        - 0.1 * a[..., 2]
        + 0.2 * a[..., 0] * a[..., 2]
        - 0.1 * a[..., 1] ** 2
        + 0.1 * a[..., 1]
    )


def abilities_at(a: np.ndarray) -> np.ndarray:
    return 0.9 - 0.05 * a[..., 0] ** 2 - 0.25 * a[..., 2] ** 2 - 0.1 * a[..., 1]


def measured_at(points: np.ndarray, spread: float = 0.0) -> Results:
    """SFT, RLHF and merges at these ratios; the two measures are quadratics, and the noise is every point's own."""
    found = []
    for i, ratios in enumerate([(0.0,) * 3, (1.0,) * 3, *map(tuple, points.tolist())]):
        at = np.array(ratios)
        measured = {
            "reward": exactly(float(reward_at(at)), 80, spread, i),
            "abilities": exactly(float(abilities_at(at)), 80, spread, i + 1000),
        }
        name = ["sft", "rlhf"][i] if i < 2 else f"surrogate {i - 1}"
        kind = name if i < 2 else "surrogate"
        groups = {} if i < 2 else {**{f"blocks.{k}": r for k, r in enumerate(ratios)}, "head": float(at.mean())}
        found.append(Point(name, kind, None if i < 2 else float(at.mean()), groups, measured))
    return Results({"reward": REWARD, "abilities": ABILITIES}, tuple(found))


def information(points: np.ndarray) -> float:
    rows = terms(np.concatenate([points, [[0.0] * points.shape[1], [1.0] * points.shape[1]]]))
    return float(np.linalg.det(rows.T @ rows))


@pytest.mark.parametrize("count", [4, 5, 6])
def test_no_design_of_two_blocks_is_better(count: int) -> None:
    every = [p for p in product((0.0, 0.5, 1.0), repeat=2) if p not in ((0.0, 0.0), (1.0, 1.0))]
    best = max(information(np.array(some)) for some in combinations(every, count))
    assert information(design(2, count)) == pytest.approx(best)


@pytest.mark.parametrize(("blocks", "count"), [(3, 10), (3, 14), (4, 15), (1, 1)])
def test_designs_tell_every_coefficient_and_repeat_nothing(blocks: int, count: int) -> None:
    points = design(blocks, count)
    assert points.shape == (count, blocks)
    assert len({*map(tuple, points.tolist()), (0.0,) * blocks, (1.0,) * blocks}) == count + 2
    assert information(points) > 1
    assert (design(blocks, count) == points).all()
    random = np.random.default_rng(0)
    others = [information(random.choice((0.0, 0.5, 1.0), (count, blocks))) for _ in range(200)]
    assert information(points) >= max(others)


def test_designs_that_cannot_be() -> None:
    with pytest.raises(DataError, match="10 coefficients: 7 merges with SFT and RLHF cannot tell it"):
        design(3, 7)
    with pytest.raises(DataError, match="no more than 7 points: not 8"):
        design(2, 8)


def test_ten_points_and_the_two_models_tell_a_quadratic() -> None:
    results = measured_at(design(3, 10))
    surfaces = fit_surfaces(results)
    there = lattice(3)
    assert np.abs(surfaces["reward"].predict(there) - reward_at(there)).max() < 1e-9
    assert np.abs(surfaces["abilities"].predict(there) - abilities_at(there)).max() < 1e-9
    left_out = surfaces["reward"].left_out  # NaN where a point alone tells a coefficient
    assert np.nanmax(np.abs(left_out)) < 1e-9


def test_what_is_left_out_is_what_a_fit_to_the_others_misses() -> None:
    random = np.random.default_rng(0)
    ratios = random.random((14, 2))
    values = np.sin(5 * ratios[:, 0]) + random.normal(0, 0.1, 14)
    surface = fit_surface(REWARD, ratios, values, np.full(14, 0.1))
    for i in range(14):
        keep = np.arange(14) != i
        other = fit_surface(REWARD, ratios[keep], values[keep], np.full(13, 0.1))
        assert surface.left_out[i] == pytest.approx(values[i] - other.predict(ratios[[i]])[0])


def test_the_error_that_is_told_is_that_on_new_points() -> None:
    """Over many noisy fits: the error of points left out stands for that of points never seen, noise and all."""

    def truth(at: np.ndarray) -> np.ndarray:
        return np.asarray(0.3 + 0.5 * at[:, 0] - 0.4 * at[:, 0] * at[:, 1])

    random = np.random.default_rng(4)
    told, true = [], []
    for _ in range(200):
        ratios = random.random((20, 2))
        surface = fit_surface(REWARD, ratios, truth(ratios) + random.normal(0, 0.05, 20), np.full(20, 0.05))
        new = random.random((20, 2))
        told.append((surface.left_out**2).mean())
        true.append(((surface.predict(new) - truth(new) - random.normal(0, 0.05, 20)) ** 2).mean())
    assert np.mean(told) == pytest.approx(np.mean(true), rel=0.25)


def test_words_for_how_well_it_predicts() -> None:
    ratios = lattice(2)[::17]
    smooth = fit_surface(REWARD, ratios, ratios[:, 0] ** 2, np.full(len(ratios), 0.01))
    assert "about as well as can be measured" in error_in_words(smooth)
    step = 1 / (1 + np.exp(30 * (0.6 - ratios[:, 0])))
    assert "reward: predicts roughly; points left out" in error_in_words(
        fit_surface(REWARD, ratios, step, np.full(len(ratios), 0.01))
    )
    lot = np.random.default_rng(0).normal(0, 1, len(ratios))
    assert "does not predict" in error_in_words(fit_surface(REWARD, ratios, lot, np.full(len(ratios), 0.01)))
    few = design(2, 4)
    points = np.concatenate([few, [[0.0, 0.0], [1.0, 1.0]]])
    assert "as many points as coefficients" in error_in_words(
        fit_surface(REWARD, points, points[:, 0], np.full(6, 0.01))
    )


def test_points_that_do_not_tell_a_quadratic() -> None:
    line = np.linspace(0, 1, 12)[:, None].repeat(3, 1)  # uniform averages
    with pytest.raises(DataError, match="12 points do not tell the 10 coefficients"):
        fit_surface(REWARD, line, line[:, 0], np.full(12, 0.01))


@pytest.mark.parametrize("asked", ["abilities >= 0.85", "reward >= 0.7"])
def test_proposals_are_the_best_there_are(asked: str) -> None:
    results = measured_at(design(3, 10))
    found = propose(results, [parse_requirement(asked, results.measures)])
    there = lattice(3)
    reward, abilities = reward_at(there), abilities_at(there)
    best = reward[abilities >= 0.85].max() if asked.startswith("abilities") else abilities[reward >= 0.7 - 1e-9].max()
    name = "reward" if asked.startswith("abilities") else "abilities"
    assert len(found) == 3
    assert all(proposal.holds for proposal in found)
    assert found[0].predicted[name] == pytest.approx(
        best, abs=0.026
    )  # a step of the grid: the best itself may have been measured
    apart = [max(abs(a - b) for a, b in zip(p.ratios, q.ratios, strict=True)) for p, q in combinations(found, 2)]
    assert min(apart) > 0.1
    assert not {p.ratios for p in found} & {block_ratios(p) for p in results.points}


@pytest.mark.parametrize("asked", ["abilities >= 0.9", "reward >= 1.0"])
def test_the_models_themselves_are_not_proposed(asked: str) -> None:
    """SFT, or RLHF, is predicted to be best; it was measured."""
    results = measured_at(design(3, 12))
    found = propose(results, [parse_requirement(asked, results.measures)])
    assert len(found) == 3
    assert not {p.ratios for p in found} & {(0.0,) * 3, (1.0,) * 3}


def test_the_half_that_reports_proposes_nothing() -> None:
    from amatax.evaluation.results import Measured, half_of

    results = measured_at(design(3, 10))
    points = []
    for i, point in enumerate(results.points):
        reward = point.measured["reward"]
        sums = reward.sums.copy()
        sums[[half_of(s) == "report" for s in reward.samples], 0] = (i * 7919 % 13) / 13
        points.append(replace(point, measured={**point.measured, "reward": Measured(sums, reward.samples)}))
    asked = [parse_requirement("abilities >= 0.85", results.measures)]
    assert [p.ratios for p in propose(replace(results, points=tuple(points)), asked)] == [
        p.ratios for p in propose(results, asked)
    ]


def test_a_predicted_front_is_beaten_by_nothing() -> None:
    results = measured_at(design(3, 10))
    surfaces = fit_surfaces(results)
    ratios, values = predicted_front([REWARD, ABILITIES], [surfaces["reward"], surfaces["abilities"]], 3)
    there = lattice(3)
    reward, abilities = reward_at(there), abilities_at(there)
    for at, (x, y) in zip(ratios, values, strict=True):
        assert x == pytest.approx(float(reward_at(at)))
        assert not ((reward > x + 1e-9) & (abilities > y + 1e-9)).any()
    assert (np.diff(values[:, 0]) >= 0).all()
    assert values[:, 0].max() == pytest.approx(reward.max())


def test_what_was_foretold_is_told_beside_what_was_measured() -> None:
    results = measured_at(design(3, 10), spread=0.1)
    surface = fit_surfaces(results)["reward"]
    found = propose(results)
    more = measured_at(np.array([p.ratios for p in found]), spread=0.1)
    names = [f"surrogate {i}" for i in (1, 2, 3)]
    words = confirmed_in_words(surface, found, more, names)
    assert words.startswith("reward: predicts about as well as can be measured; ")
    assert words.count("foretold") == words.count("measured") - 1 == 3


def test_different_numbers_of_blocks() -> None:
    results = measured_at(design(3, 10))
    odd = replace(results.points[2], name="odd", ratios={"blocks.0": 0.5})
    with pytest.raises(DataError, match="different numbers of blocks"):
        fit_surfaces(replace(results, points=(*results.points, odd)))
