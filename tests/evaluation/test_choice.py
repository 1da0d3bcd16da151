"""Requirements, the rule, and a choice that is made on one half and told on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from amatax.errors import DataError
from amatax.evaluation.choice import choice_record, choose, part
from amatax.evaluation.requirements import Requirement, parse_requirement
from amatax.evaluation.results import Measured, Point, Results, half_of
from amatax.evaluation.statistics import value_of
from tests.evaluation.tables import ABILITIES, KL, LENGTH, REWARD, scores, table

MEASURES = {m.name: m for m in (REWARD, ABILITIES, KL, LENGTH)}
ROWS = {
    "sft": [0.2, 0.9, 0.0],
    "rlhf": [0.8, 0.5, 0.4],
    "uniform 0.3": [0.3, 0.89, 0.05],
    "uniform 0.6": [0.7, 0.8, 0.2],
    "fitted-3 0.6": [0.75, 0.7, 0.1],
    "uniform 0.9": [0.79, 0.55, 0.35],
}


def ask(*texts: str) -> list[Requirement]:
    return [parse_requirement(text, MEASURES) for text in texts]


@pytest.mark.parametrize(
    ("text", "wanted", "bound"),
    [
        ("abilities >= 0.98*sft", ("abilities", True, "sft", 0.98, 0.0), 0.98 * 4),
        ("abilities>=sft", ("abilities", True, "sft", 1.0, 0.0), 4),
        ("reward >= 0.9 * RLHF", ("reward", True, "rlhf", 0.9, 0.0), 0.9 * 5),
        ("reward >= rlhf - 0.05", ("reward", True, "rlhf", 1.0, -0.05), 4.95),
        ("kl <= 0.1", ("kl", False, "", 1.0, 0.1), 0.1),
        ("kl <= .5*rlhf+1e-2", ("kl", False, "rlhf", 0.5, 0.01), 2.51),
        ("length <= 1.2*sft", ("length", False, "sft", 1.2, 0.0), 4.8),
        ("reward >= -0.5", ("reward", True, "", 1.0, -0.5), -0.5),
    ],
)
def test_what_can_be_asked(text: str, wanted: tuple[object, ...], bound: float) -> None:
    found = parse_requirement(text, MEASURES)
    assert found[1:] == wanted
    assert found.bound(4.0, 5.0) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("abilties >= 0.98*sft", "no measure `abilties`", "did you mean `abilities`?"),
        ("abilities > 0.98*sft", "is no requirement", "write `NAME >= 0.98\\*sft`"),
        ("abilities", "is no requirement", "write"),
        ("abilities >= 0.98*uniform", "not of `uniform`", "write"),
        ("abilities <= 0.9*sft", "asks for a worse abilities: more", "abilities >= "),
        ("kl >= 0.1", "asks for a worse kl: less", "kl <= "),
        ("reward >= 0,9*rlhf", "is no requirement", "write"),
    ],
)
def test_what_cannot(text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        parse_requirement(text, MEASURES)
    assert "\n" not in error.value.message
    assert hint.replace("\\", "") in error.value.hint


def test_a_share_of_a_negative_number_is_refused() -> None:
    rows = {"sft": [-3.0, 0.9], "rlhf": [-1.0, 0.5], "uniform 0.5": [-2.0, 0.8]}
    results = table((REWARD, ABILITIES), rows)
    with pytest.raises(DataError, match="a share of a negative number says nothing") as error:
        choose(results, ask("reward >= 0.9*rlhf"))
    assert "rlhf - 0.1" in error.value.hint
    assert choose(results, ask("reward >= rlhf - 1.5")).point == results.points[2]


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["abilities >= 0.98*sft"], "uniform 0.3"),  # a tax is kept: the most reward among those
        (["abilities >= 0.85*sft"], "uniform 0.6"),
        (["kl <= 0.15"], "fitted-3 0.6"),
        (["reward >= 0.9*rlhf"], "fitted-3 0.6"),  # the gain is kept: the least tax, over abilities and kl
        (["reward >= 0.97*rlhf"], "uniform 0.9"),
        ([], "fitted-3 0.6"),  # the knee: .92 of the gain, .5 and .75 of the taxes
    ],
)
def test_the_rule(texts: list[str], chosen: str) -> None:
    found = choose(table((REWARD, ABILITIES, KL), ROWS), ask(*texts))
    assert found.point is not None
    assert found.point.name == chosen
    assert [held.verdict for held in found.held] == ["holds"] * len(texts)


def test_the_knee_of_one_pair_is_farthest_from_the_line() -> None:
    rows = {name: means[:2] for name, means in ROWS.items()}
    found = choose(table((REWARD, ABILITIES), rows))
    assert found.point is not None
    assert found.point.name == "uniform 0.6"  # (.5 / .6) + (.3 / .4) beats .92 + .5, .17 + .98 and .98 + .13
    assert "the knee" in found.rule.in_words()


def test_nothing_holds() -> None:
    found = choose(table((REWARD, ABILITIES, KL), ROWS), ask("abilities >= sft", "reward >= rlhf"))
    assert found.point is None
    assert found.candidates == (4, 0)
    assert found.nearest is not None
    point, missed = found.nearest
    assert point.name == "uniform 0.6"  # misses a quarter of the abilities' tax; the others more of something
    assert missed == {"abilities >= sft": pytest.approx(0.25), "reward >= rlhf": pytest.approx(1 / 6)}
    with pytest.raises(ValueError, match="nothing was chosen"):
        choice_record(table((REWARD, ABILITIES, KL), ROWS), found)


def halves_that_disagree() -> Results:
    """`fitted-3 0.5` shines on the half that chooses and is poor on the half that reports."""
    results = table(
        (REWARD, ABILITIES), {"sft": [0.2, 0.9], "rlhf": [0.8, 0.5], "uniform 0.5": [0.5, 0.8]}, spread=0.01
    )
    samples = results.points[0].measured["reward"].samples
    values = np.array([0.7 if half_of(sample) == "choose" else 0.3 for sample in samples])
    lucky = {"reward": scores(values), "abilities": results.points[2].measured["abilities"]}
    return replace(results, points=(*results.points, Point("fitted-3 0.5", "fitted-3", 0.5, {"blocks.0": 0.5}, lucky)))


def test_what_chose_is_not_what_reports() -> None:
    found = choose(halves_that_disagree(), ask("reward >= 0.8*rlhf"))
    assert found.point is not None
    assert found.point.name == "fitted-3 0.5"
    assert found.uniform == "uniform 0.5"
    (held,) = found.held
    assert held.value == pytest.approx(0.3)
    assert held.verdict == "does not hold"
    assert held.margin.high < 0
    verdicts = {(c.measure, c.other): c.verdict for c in found.comparisons}
    assert verdicts["reward", "uniform 0.5"] == "worse"
    assert verdicts["reward", "sft"] == "better"
    assert verdicts["abilities", "uniform 0.5"] == "indistinguishable"


def test_the_record_is_of_the_reporting_half() -> None:
    results = halves_that_disagree()
    record = choice_record(results, choose(results, ask("reward >= 0.8*rlhf")))
    assert record["chosen"] == "fitted-3 0.5"
    assert record["chosen_on"]["reward"] == pytest.approx(0.7)
    assert record["figures"]["chosen"]["reward"][0] == pytest.approx(0.3)
    assert set(record["figures"]) == {"sft", "rlhf", "uniform", "chosen"}
    report = value_of(REWARD, part(results, "report").points[1].measured["reward"])
    assert record["figures"]["rlhf"]["reward"][0] == pytest.approx(report, abs=1e-6)
    counts = record["samples"]["reward"]
    assert counts["chosen_on"] + counts["reported_on"] == 80
    assert yaml.safe_load(yaml.safe_dump(record)) == record  # nothing that YAML could not hold


def test_ties_go_to_the_smaller_alpha() -> None:
    rows = {"sft": [0.2, 0.9], "rlhf": [0.8, 0.5], "uniform 0.7": [0.6, 0.8], "uniform 0.4": [0.6, 0.8]}
    found = choose(table((REWARD, ABILITIES), rows))
    assert found.point is not None
    assert found.point.name == "uniform 0.4"


def test_too_few_samples_to_halve() -> None:
    results = table((REWARD, ABILITIES), ROWS and {k: v[:2] for k, v in ROWS.items()}, count=2)
    with pytest.raises(DataError, match="2 samples cannot be halved"):
        choose(results)


def test_rlhf_that_moved_nothing() -> None:
    results = table((REWARD, LENGTH), {"sft": [0.5, 1], "rlhf": [0.5, 2], "uniform 0.5": [0.5, 1]})
    with pytest.raises(DataError, match="moved no measure"):
        choose(results)


def test_a_point_without_a_measure_is_no_candidate() -> None:
    results = table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()})
    bare = Point(
        "grid 1", "grid", 0.5, {}, {"reward": Measured(*results.points[1].measured["reward"].__dict__.values())}
    )
    found = choose(replace(results, points=(*results.points, bare)))
    assert found.candidates == (4, 4)
