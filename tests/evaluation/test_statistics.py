"""Standard errors against their formulas and scipy's, intervals against a known truth, verdicts against a stated rate of false alarms."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from amatax.errors import DataError
from amatax.evaluation.results import Measure, Measured
from amatax.evaluation.statistics import (
    difference,
    half,
    in_words,
    interval,
    samples_apart,
    standard_error,
    value_of,
    verdict,
)
from amatax.fitting.bootstrap import Interval
from tests.evaluation.tables import ABILITIES, KL, LENGTH, REWARD, scores


def test_the_error_of_a_mean_is_the_usual_one() -> None:
    values = [0.1, 0.5, 0.4, 0.9, 0.35]
    assert value_of(REWARD, scores(values)) == pytest.approx(0.45)
    assert standard_error(REWARD, scores(values)) == pytest.approx(stats.sem(values), rel=1e-12)


def test_the_error_of_a_ratio_is_the_delta_methods() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(5, 40, 500).astype(float)
    nats = tokens * random.normal(0.8, 0.1, 500)
    measured = Measured(np.stack([nats, tokens], 1), tuple(map(str, range(500))))
    left = nats - nats.sum() / tokens.sum() * tokens  # the linear term of a ratio of sums
    assert standard_error(KL, measured) == pytest.approx(np.sqrt(500 / 499 * (left**2).sum()) / tokens.sum(), rel=2e-3)


def test_the_error_of_any_other_function_is_scipys_jackknife() -> None:
    """A function of sums that is no ratio: the standard deviation of (1, x, x^2)."""

    def spread(sums: np.ndarray) -> np.ndarray:
        return np.sqrt(sums[..., 2] / sums[..., 0] - (sums[..., 1] / sums[..., 0]) ** 2)

    x = np.random.default_rng(2).gamma(2.0, 1.0, 60)
    measured = Measured(np.stack([np.ones(60), x, x * x], 1), tuple(map(str, range(60))))
    without = np.array([np.std(np.delete(x, i)) for i in range(60)])
    by_hand = np.sqrt(59 / 60 * ((without - without.mean()) ** 2).sum())
    measure = Measure("spread", "spread", None, spread, {})
    assert standard_error(measure, measured) == pytest.approx(by_hand, rel=1e-9)


def test_in_pieces_the_jackknife_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = scores(np.random.default_rng(0).random(101))
    whole = standard_error(REWARD, measured)
    monkeypatch.setattr("amatax.evaluation.statistics.AT_ONCE", 20)
    assert standard_error(REWARD, measured) == whole


def test_one_sample_has_no_error() -> None:
    assert np.isnan(standard_error(REWARD, scores([0.5])))


def test_an_interval_is_scipys() -> None:
    values = np.random.default_rng(5).gamma(2.0, 1.0, 200)
    found = interval(REWARD, scores(values))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.03 * width)


def covered(draw: np.random.Generator, count: int, what: str) -> bool:
    """Whether an interval of a drawn data set holds the truth."""
    if what == "mean":
        found = interval(REWARD, scores(draw.beta(2, 5, count)), seed=int(draw.integers(2**31)))
        return found.low <= 2 / 7 <= found.high
    if what == "ratio":
        tokens = draw.integers(5, 60, count).astype(float)
        nats = tokens * 0.8 + draw.normal(0, 1, count) * np.sqrt(tokens)
        measured = Measured(np.stack([nats, tokens], 1), tuple(map(str, range(count))))
        found = interval(KL, measured, seed=int(draw.integers(2**31)))
        return found.low <= 0.8 <= found.high
    both = draw.normal(0, 1, count)  # what makes a sample hard for both points
    one, other = both + draw.normal(0.1, 0.5, count), both + draw.normal(0, 0.5, count)
    found = difference(REWARD, scores(one), scores(other), seed=int(draw.integers(2**31)))
    return found.low <= 0.1 <= found.high


@pytest.mark.parametrize("what", ["mean", "ratio", "difference"])
def test_intervals_hold_the_truth_as_often_as_they_say(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % of 400 data sets of 80 samples, give or take four standard errors of that count."""
    monkeypatch.setattr("amatax.fitting.bootstrap.DRAWS", 800)
    draw = np.random.default_rng(11)
    share = np.mean([covered(draw, 80, what) for _ in range(400)])
    assert share == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 400))


@pytest.mark.parametrize("changed", [0.02, 0.05, 0.4])
def test_false_alarms_where_both_are_as_good(changed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong answers of two points as good as each other, which differ in few or many samples: 5 % at most, and four errors."""
    monkeypatch.setattr("amatax.fitting.bootstrap.DRAWS", 400)
    draw = np.random.default_rng(3)
    alarms = 0
    for seed in range(400):
        both = (draw.random(200) < 0.7).astype(float)
        differs, coin = draw.random(200) < changed, (draw.random(200) < 0.5).astype(float)  # which one is right
        one, other = np.where(differs, coin, both), np.where(differs, 1 - coin, both)
        alarms += verdict(ABILITIES, scores(one), scores(other), seed) != "indistinguishable"
    assert alarms / 400 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)


def test_a_difference_is_compared_in_pairs() -> None:
    """Samples that vary much, by as much at both points: only in pairs can a small difference be told."""
    hard = np.random.default_rng(0).normal(0, 1, 100)
    worse = scores(hard)
    better = scores(hard + 0.05 + 0.001 * np.arange(100) / 100)
    assert verdict(REWARD, better, worse) == "better"
    assert verdict(REWARD, worse, better) == "worse"
    assert verdict(KL, better, worse) == "worse"
    assert verdict(LENGTH, better, worse) == "more"
    assert verdict(REWARD, better, better) == "indistinguishable"
    assert samples_apart(better, worse) == 100


@pytest.mark.parametrize(
    ("low", "high", "samples", "differing", "word"),
    [
        (0.1, 0.2, 50, 50, "better"),
        (-0.2, -0.1, 50, 50, "worse"),
        (0.0, 0.2, 50, 50, "indistinguishable"),
        (0.1, 0.2, 9, 9, "too few"),
        (0.1, 0.2, 50, 5, "indistinguishable"),
    ],
)
def test_words(low: float, high: float, samples: int, differing: int, word: str) -> None:
    assert in_words(REWARD, Interval((low + high) / 2, low, high), samples, differing) == word


def test_a_factor_multiplies_the_other_point() -> None:
    one, other = scores([0.5, 0.7, 0.9] * 10), scores([1.0, 0.8, 0.9] * 10)
    assert difference(REWARD, one, other, factor=0.5).value == pytest.approx(0.7 - 0.45)


def test_other_samples_are_not_compared() -> None:
    one, other = scores([1.0, 0.0]), Measured(np.ones((2, 2)), ("1", "3"))
    with pytest.raises(DataError, match="reward: the points were measured on different samples"):
        difference(REWARD, one, other)


def test_halves_are_apart_and_whole() -> None:
    measured = scores(np.arange(100.0), [f"answer {i}" for i in range(100)])
    choose, report = half(measured, "choose"), half(measured, "report")
    assert sorted([*choose.samples, *report.samples], key=int) == list(measured.samples)
    assert 30 < len(choose.samples) < 70
    for part in (choose, report):
        assert part.responses == tuple(f"answer {int(sample) - 1}" for sample in part.samples)
        assert part.sums[:, 0].tolist() == [int(sample) - 1 for sample in part.samples]


def test_the_same_numbers_in_every_process() -> None:
    code = (
        "import numpy as np\nfrom tests.evaluation.tables import *\nfrom amatax.evaluation.statistics import *\n"
        "one, other = scores(np.random.default_rng(0).random(300)), scores(np.random.default_rng(1).random(300))\n"
        "print(difference(REWARD, one, other, 7), standard_error(REWARD, one))"
    )
    seen = set()
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(seen) == 1
