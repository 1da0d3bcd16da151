"""The look around, in landscapes whose optima are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from amatax import api
from amatax.fitting import search as module
from amatax.fitting.likelihood import Measured
from amatax.fitting.optimum import Function, Optimum
from amatax.fitting.passes import Passes
from amatax.fitting.problem import Keep, Problem
from amatax.fitting.samples import Sample
from amatax.fitting.search import search
from amatax.fitting.variables import Variables
from amatax.recipes.schema import Ratios
from tests.fitting.test_optimum import bowl


class Landscape(Problem):
    """A problem whose likelihood is a function of the ratios."""

    def __init__(self, function: Function, blocks: int, alpha: float) -> None:
        names, shares = [f"block {i}" for i in range(blocks)], [Fraction(1, blocks)] * blocks
        words = Ratios.model_validate({"blocks": [0.5] * blocks})
        variables = Variables(names, shares, words, spans=None, groups=False, free_head=False)
        nothing: Any = None
        parts: dict[str, Sequence[Sample]] = {"fit": [Sample([0, 1], 1, "")]}
        super().__init__(nothing, variables, parts, Passes(None, {}), 1, api.Watcher(), alpha)
        self.function = function
        self.gradients: list[list[float]] = []

    def measured(
        self, part: str, values: Sequence[float], *, gradient: bool = False, end: float | None = None
    ) -> Measured:
        point = list(values) if end is None else [end] * len(values)
        value, slope = self.function(point)
        if gradient:
            self.gradients.append(point)
        one = torch.ones(1, dtype=torch.float64)
        return Measured(one * value, one, torch.tensor(slope, dtype=torch.float64) if gradient else None)


def wells(*holes: tuple[list[float], float]) -> Function:
    """Round holes of a width of 0.2 in a plain at 1: (middle, depth)."""

    def function(values: list[float]) -> tuple[float, list[float]]:
        value, slope = 1.0, np.zeros(len(values))
        for middle, depth in holes:
            away = np.array(values) - middle
            here = depth * float(np.exp(-(away @ away) / 0.08))
            value -= here
            slope += here * away / 0.04
        return value, slope.tolist()

    return function


def found(function: Function, alpha: float, begin: list[float] | None) -> tuple[Optimum, int, Landscape]:
    problem = Landscape(function, 3, alpha)
    old = None if begin is None else Optimum(begin, function(begin)[0], 1, [])
    return *search(problem, alpha, None, 0.0, old, 0), problem


SHALLOW, DEEP = [0.75, 0.5, 0.25], [0.25, 0.5, 0.75]


def test_a_first_look_descends_from_uniform_once_and_from_the_best_corners() -> None:
    optimum, seen, problem = found(wells((SHALLOW, 0.5), (DEEP, 0.8)), 0.5, None)
    assert optimum.values == pytest.approx(DEEP, abs=0.02)
    assert seen == 1  # uniform stands between the two; the two best corners are the deep one's
    assert problem.gradients[0] == [0.5] * 3
    assert sum(point == [0.5] * 3 for point in problem.gradients) == 1


@pytest.mark.parametrize(("before", "end", "seen"), [(0.25, DEEP, 2), (0.45, SHALLOW, 1)])
def test_a_far_mean_is_looked_around_for_and_a_near_one_trusts_the_last(
    before: float, end: list[float], seen: int
) -> None:
    """From the shallow hole, which lies lower than any corner: two starts see the deep one, one does not."""
    begin = [value + before - 0.5 for value in SHALLOW]
    optimum, optima, _ = found(wells((SHALLOW, 0.5), (DEEP, 0.8)), 0.5, begin)
    assert optimum.values == pytest.approx(end, abs=0.02)
    assert optima == seen


def test_a_near_mean_begins_at_a_corner_that_lies_lower() -> None:
    optimum, _, _ = found(wells((DEEP, 0.8)), 0.5, [1.0, 0.0, 0.4])  # nothing is there now
    assert optimum.values == pytest.approx(DEEP, abs=0.02)


def test_a_descent_into_a_known_optimum_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bowl: the second and the third descent say nothing new."""

    def gradients(joined: float) -> tuple[int, Optimum]:
        monkeypatch.setattr(module, "JOINED", joined)
        optimum, seen, problem = found(bowl(np.diag([1.0, 0.3, 0.1]), np.array([0.6, 0.3, 0.4])), 0.5, None)
        assert seen == 1
        return len({tuple(point) for point in problem.gradients}), optimum

    (with_it, one), (without, other) = gradients(0.1), gradients(-1.0)
    assert with_it < without
    assert one.values == pytest.approx(other.values, abs=1e-2)


def test_a_descent_that_only_passes_by_goes_on() -> None:
    """An optimum nearby that lies up the slope is another one's."""
    optimum = Optimum([0.5, 0.5], 0.0, 1, [])
    away: Callable[[list[float]], Any] = module._until_joined(bowl(np.eye(2), np.array([0.7, 0.3])), [optimum], 0.1)
    assert away([0.55, 0.45])[0] > 0
    with pytest.raises(module._JoinedError):
        away([0.45, 0.55])
    assert away([0.3, 0.7])[0] > 0  # too far to tell


@pytest.mark.parametrize("size", [1.0, 0.1, 0.03, 0.01])
@pytest.mark.parametrize("centre", [[0.1, 0.2, 0.9], [0.8, 0.3, 0.1], [0.5, 0.05, 0.6], [-0.2, 0.5, 0.9]])
def test_a_weak_signal_is_followed_to_its_end(size: float, centre: list[float]) -> None:
    """Models that differ little: all that the ratios can change is a few 1e-4 nats, and the fit ends as near the best."""
    function = bowl(size * np.diag([0.04, 0.1, 0.06]), np.array(centre))
    best, _, problem = found(function, 0.4, None)
    grid = [[i / 50, j / 50, 1.2 - i / 50 - j / 50] for i in range(51) for j in range(51)]
    heights = [function(point)[0] for point in grid if 0 <= point[2] <= 1]
    assert best.value - min(heights) <= 2e-3 * (max(heights) - min(heights))
    assert len({tuple(point) for point in problem.gradients}) <= 40


@pytest.mark.parametrize(("samples", "few", "kept"), [(20, 20, 20), (100, 32, 100), (1000, 100, 128), (6000, 512, 512)])
def test_how_many_stand_for_all(samples: int, few: int, kept: int) -> None:
    """At least 32, or 128 of those that are kept, one in ten, and 512 at most."""
    problem = Landscape(bowl(np.eye(3), np.full(3, 0.5)), 3, 0.4)
    problem.parts = {part: [Sample([0, number], 1, "") for number in range(samples)] for part in ("fit", "keep")}
    counts = [len(problem.parts[module._few(problem, part, least, 0)])
              for part, least in (("fit", module.FEW), ("keep", module.FEW_KEPT))]  # fmt: skip
    assert counts == [few, kept]


class Kept(Landscape):
    """Every sample of `keep` minds one block, one in eight so much that it is most of the divergence."""

    def measured(
        self, part: str, values: Sequence[float], *, gradient: bool = False, end: float | None = None
    ) -> Measured:
        if not part.startswith("keep"):
            return super().measured(part, values, gradient=gradient, end=end)
        point = np.array(values if end is None else [end] * len(values))
        block = np.array([sample.ids[1] % 3 for sample in self.parts[part]])
        weight = np.array([8.0 if sample.ids[1] % 8 == 0 else 0.1 for sample in self.parts[part]])
        slope = np.bincount(block, weight * point[block], len(point)) / len(block)
        found = Measured(
            torch.tensor(weight * point[block] ** 2 / 2),
            torch.ones(len(block), dtype=torch.float64),
            torch.tensor(slope) if gradient else None,
        )
        self.journal.asked.setdefault(part, {})[tuple(values) if end is None else str(end)] = found
        return found


@pytest.mark.parametrize("seed", range(5))
def test_the_few_that_are_kept_are_enough_for_a_divergence_that_lies_in_few_samples(seed: int) -> None:
    problem = Kept(bowl(np.eye(3) * 1e-3, np.array([0.2, 0.5, 0.8])), 3, 0.5)
    kept = [Sample([0, number], 1, "") for number in range(400)]
    problem.parts["keep"] = kept
    best, _ = search(problem, 0.5, Keep(kept, [], weight=1.0), 0.0, None, seed)
    (few,) = (part for part in problem.parts if part.startswith("keep:"))
    point = [0.2, 0.5, 0.8]
    assert problem.measured(few, point).mean == pytest.approx(problem.measured("keep", point).mean, rel=0.25)
    assert best.values == pytest.approx([0.5] * 3, abs=0.02)
