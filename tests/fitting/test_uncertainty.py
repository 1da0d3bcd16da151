"""How sure fits are that a tax, a bound or a penalty led, against problems whose answer is known: two clouds, of which the means are estimated."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from amatax import api
from amatax.fitting.intervals import ratio_intervals
from amatax.fitting.likelihood import Measured
from amatax.fitting.passes import Passes
from amatax.fitting.problem import Keep, Problem
from amatax.fitting.samples import Sample
from amatax.fitting.uncertainty import fit_covariance, holders
from amatax.fitting.variables import Variables
from amatax.recipes.schema import Ratios

DATA, KEPT = 400, 150
AIM, ORIGIN = np.array([0.7, 0.5, 0.9]), np.array([0.3, 0.2, 0.1])
AIM_SPREAD, ORIGIN_SPREAD = np.array([0.2, 0.05, 0.1]), np.array([0.1, 0.2, 0.15])


class Clouds(Problem):
    """The NLL of a sample is half its squared distance from the ratios, times its tokens; so is its divergence, from another cloud."""

    def __init__(
        self,
        seed: int,
        alpha: float | None,
        tokens: int = 1,
        shares: tuple[int, int, int] = (1, 1, 1),
        prompts: tuple[int, int] = (DATA, KEPT),
    ) -> None:
        random = np.random.default_rng(seed)
        self.clouds = {
            "fit": random.normal(AIM, AIM_SPREAD, (prompts[0], 3)),
            "keep": random.normal(ORIGIN, ORIGIN_SPREAD, (prompts[1], 3)),
        }
        self.lengths = {part: random.integers(1, tokens + 1, len(cloud)) for part, cloud in self.clouds.items()}
        variables = Variables(
            ["a", "b", "c"],
            [Fraction(share, sum(shares)) for share in shares],
            Ratios.model_validate({"blocks": [0.5] * 3}),
            spans=None,
            groups=False,
            free_head=False,
        )
        parts = {part: [Sample([0, 1], 1, str(i)) for i in range(len(cloud))] for part, cloud in self.clouds.items()}
        merged: Any = SimpleNamespace(compute=torch.float64)
        super().__init__(merged, variables, parts, Passes(None, {}), 1, api.Watcher(), alpha)

    def measured(
        self, part: str, values: Sequence[float], *, gradient: bool = False, end: float | None = None
    ) -> Measured:
        apart, tokens = np.array(values) - self.clouds[part], self.lengths[part]
        slope = torch.tensor(tokens @ apart / tokens.sum()) if gradient else None
        found = Measured(torch.tensor(tokens * (apart**2).sum(1) / 2), torch.tensor(tokens, dtype=torch.float64), slope)
        self.journal.asked.setdefault(part, {}).setdefault(tuple(values), found)
        return found

    def middle(self, part: str) -> np.ndarray:
        return np.asarray(self.lengths[part] @ self.clouds[part] / self.lengths[part].sum())

    def within(self, bound: float) -> np.ndarray:
        """The optimum within a bound on the divergence, that the middle of the data does not keep: on a ball, towards that middle."""
        origin, middle, tokens = self.middle("keep"), self.middle("fit"), self.lengths["keep"]
        own = tokens @ ((self.clouds["keep"] - origin) ** 2).sum(1) / tokens.sum()
        return np.asarray(origin + np.sqrt(2 * bound - own) * (middle - origin) / np.linalg.norm(middle - origin))


def covariance_of(
    problem: Problem, best: Sequence[float] | np.ndarray, keep: Keep | None, regulariser: float = 0.0
) -> np.ndarray | None:
    values = [float(value) for value in best]
    return fit_covariance(problem, values, keep, holders(problem, values, regulariser))


def test_of_a_weighted_sum_both_parts_prompts_count() -> None:
    problem, weight = Clouds(0, None), 0.5
    best = (problem.middle("fit") + weight * problem.middle("keep")) / (1 + weight)
    covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], weight=weight))
    assert covariance is not None
    own = problem.clouds["fit"].var(0, ddof=1) / DATA + weight**2 * problem.clouds["keep"].var(0, ddof=1) / KEPT
    assert covariance.diagonal() == pytest.approx(own / (1 + weight) ** 2, rel=0.05)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("way", ["bound", "weight"])
def test_draws_anew_vary_as_was_said(way: str, tokens: int) -> None:
    """Of 400 draws of both clouds: the spread of the optima is what each of them says, of every ratio and of their mean."""
    found, said = [], []
    for seed in range(400):
        problem = Clouds(seed, None, tokens)
        wish: dict[str, float] = {"most": 0.15} if way == "bound" else {"weight": 0.7}
        if way == "bound":
            best = problem.within(wish["most"])
        else:
            best = (problem.middle("fit") + 0.7 * problem.middle("keep")) / 1.7
        assert 0 < best.min() < best.max() < 1
        covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], **wish))
        assert covariance is not None
        found.append([*best, best.mean()])
        said.append([*covariance.diagonal(), covariance.mean()])
    assert np.sqrt(np.mean(said, 0)) == pytest.approx(np.std(found, 0), rel=0.12)  # three standard errors


def test_at_a_held_mean_too() -> None:
    problem, weight = Clouds(1, 0.4), 0.7
    middles = {part: cloud - cloud.mean(1, keepdims=True) + 0.4 for part, cloud in problem.clouds.items()}
    best = (middles["fit"].mean(0) + weight * middles["keep"].mean(0)) / (1 + weight)
    covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], weight=weight))
    assert covariance is not None
    own = middles["fit"].var(0, ddof=1) / DATA + weight**2 * middles["keep"].var(0, ddof=1) / KEPT
    assert covariance.diagonal() == pytest.approx(own / (1 + weight) ** 2, rel=0.05)
    assert covariance.mean() == pytest.approx(0, abs=1e-12)


def test_a_bound_that_did_not_end_the_fit_says_nothing() -> None:
    problem = Clouds(2, None)
    best = problem.middle("fit")
    wide = covariance_of(problem, best, Keep(problem.parts["keep"], [], most=5.0))
    plain = covariance_of(problem, best, None)
    assert wide is not None
    assert plain is not None
    assert wide == pytest.approx(plain, rel=1e-6)  # by other passes


@pytest.mark.parametrize("most", [0.137, 0.142])
def test_at_a_bound_a_held_mean_and_a_ratio_at_its_end_leave_one_way(most: float) -> None:
    """Shares 1, 2 and 1 of the mean, c at 0: a moves twice as far as b, and the bound alone says where."""
    found, said = [], []
    for seed in range(300):
        problem = Clouds(seed, 0.4, shares=(1, 2, 1), prompts=(DATA, 4 * KEPT))
        way, begin = np.array([-2.0, 1.0, 0.0]), np.array([1.6, 0.0, 0.0])
        away, cloud = begin - problem.middle("keep"), problem.clouds["keep"]
        height = (
            cloud.var(0).sum() + away @ away
        ) / 2 - most  # where begin + step * way meets the bound: 5 step^2 / 2 + ... = 0
        steps = np.roots([2.5, way @ away, height])
        best = begin + min(steps) * way  # the nearer one to the data's middle
        assert 0 < best[:2].min() < best[:2].max() < 1
        covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], most=most))
        assert covariance is not None
        assert covariance[2].tolist() == [0, 0, 0]
        found.append(best[:2])
        said.append(covariance.diagonal()[:2])
    assert np.sqrt(np.mean(said, 0)) == pytest.approx(np.std(found, 0), rel=0.14)  # three standard errors


@pytest.mark.parametrize("most", [0.08, 0.3])
def test_whatever_the_bound_costs(most: float) -> None:
    """Its price is more than 1 near SFT and less than 1 near the data's optimum."""
    found, said = [], []
    for seed in range(300):
        problem = Clouds(seed, None)
        best = problem.within(most)
        covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], most=most))
        assert covariance is not None
        found.append(best)
        said.append(covariance.diagonal())
    assert np.sqrt(np.mean(said, 0)) == pytest.approx(np.std(found, 0), rel=0.14)


def test_few_prompts_vary_by_one_less_than_their_number() -> None:
    problem = Clouds(4, None, prompts=(12, 12))
    best = (problem.middle("fit") + problem.middle("keep")) / 2
    covariance = covariance_of(problem, best, Keep(problem.parts["keep"], [], weight=1.0))
    assert covariance is not None
    own = (problem.clouds["fit"].var(0, ddof=1) + problem.clouds["keep"].var(0, ddof=1)) / 12
    assert covariance.diagonal() == pytest.approx(own / 4, rel=1e-6)
    for prompts in ((9, 12), (12, 9)):
        few = Clouds(4, None, prompts=prompts)
        assert covariance_of(few, best, Keep(few.parts["keep"], [], weight=1.0)) is None


def test_a_bound_on_the_far_side_is_no_bound() -> None:
    """Where the data's optimum lies nearer to SFT than the bound, nothing is bought by more of it."""
    problem = Clouds(5, None)
    beyond = problem.middle("fit") + 0.05
    bound = problem.measured("keep", beyond.tolist()).mean
    there = covariance_of(problem, beyond, Keep(problem.parts["keep"], [], most=bound))
    assert there == pytest.approx(covariance_of(problem, beyond, None), rel=1e-6)


def test_what_the_regulariser_holds_at_the_mean_cannot_move() -> None:
    """The others move against each other, wherever the penalty put them."""
    problem = Clouds(3, 0.5)
    covariance = covariance_of(problem, [0.62, 0.3794, 0.5006], None, 0.01)
    assert covariance is not None
    apart = (problem.clouds["fit"][:, 0] - problem.clouds["fit"][:, 1]) / 2
    error = apart.var(ddof=1) / DATA
    assert covariance.diagonal() == pytest.approx([error, error, 0], rel=0.03, abs=1e-12)
    low, _, held = ratio_intervals([0.62, 0.3794, 0.5006], covariance)
    assert held is None
    assert low is not None
    assert low.low < 0.62 < low.high
    assert holders(problem, [0.62, 0.3794, 0.5006], 0.01) == ["", "", "regulariser"]
    assert holders(problem, [0.62, 0.3794, 0.5006], 0.0) == ["", "", ""]
    assert holders(problem, [1.0, 1e-6, 0.5], 0.01) == ["bound", "bound", "regulariser"]


def test_the_regulariser_does_not_hold_a_free_head() -> None:
    problem = Clouds(3, 0.5, shares=(1, 1, 0))
    assert holders(problem, [0.62, 0.3794, 0.5006], 0.01) == ["", "", ""]
