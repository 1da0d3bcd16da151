"""A sweep with a surrogate: few merges, a quadratic, three proposals that are measured; stopped anywhere, it ends as if nothing had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amatax import api
from amatax.errors import AmataxError
from amatax.evaluation.outcome import SURROGATE
from amatax.evaluation.points import surrogate_point
from amatax.evaluation.predicting import Foretold, _in_words, foretell, foretold_json, plan_surrogate, proposed_points
from amatax.evaluation.requirements import parse_requirement
from amatax.evaluation.results import Point, Results
from amatax.evaluation.surrogate import Surface, terms
from amatax.evaluation.sweeping import JOURNAL, Swept
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Recipe
from tests.evaluation.nll import COUNT, tasks_of
from tests.evaluation.tables import ABILITIES, LENGTH, REWARD, exactly
from tests.evaluation.test_surrogate import abilities_at, reward_at
from tests.fitting.conftest import FAMILY, RECIPE


def recipe(**merge: Any) -> Recipe:
    return load_recipe({"models": {"sft": str(FAMILY / "sft"), "rlhf": str(FAMILY / "rlhf")}, "merge": merge})


def measured(points: list[tuple[str, str, tuple[float, ...]]]) -> Results:
    """(name, kind, ratios): two quadratics, and a length that never varies."""
    found = []
    for name, kind, ratios in points:
        at = np.array(ratios if len(ratios) == 3 else ratios * 3)
        here = {"reward": exactly(float(reward_at(at))), "abilities": exactly(float(abilities_at(at)))}
        groups = {f"blocks.{i}": ratio for i, ratio in enumerate(ratios)} if kind not in ("sft", "rlhf") else {}
        alpha = float(at.mean()) if groups else None
        found.append(Point(name, kind, alpha, groups, {**here, "length": exactly(12.0)}))
    return Results({"reward": REWARD, "abilities": ABILITIES, "length": LENGTH}, tuple(found))


def foretold_of_quadratics() -> tuple[Results, Foretold]:
    """What a surrogate says where the truth is one, with uniform averages beside it."""
    predicting = plan_surrogate(recipe(), 3, 10)
    rows = [("sft", "sft", (0.0,)), ("rlhf", "rlhf", (1.0,))]
    rows += [
        (point.name, "surrogate", tuple(point.ratios[f"blocks.{i}"] for i in range(3))) for point in predicting.points
    ]
    rows += [(f"uniform {alpha}", "uniform", (alpha,)) for alpha in (0.0, 0.3, 0.6)]
    results = measured(rows)
    asked = [parse_requirement("abilities >= 0.85", results.measures)]
    proposed, why_not = proposed_points(recipe(), predicting, results, asked)
    assert not why_not
    rows += [(point.name, "proposed", proposal.ratios) for point, proposal in proposed]
    results = measured(rows)
    return results, foretell(results, predicting, proposed)


def test_where_the_truth_is_a_quadratic_nothing_is_missed() -> None:
    _, foretold = foretold_of_quadratics()
    assert len(foretold.fitted) == 12
    assert foretold.others == ("uniform 0.3", "uniform 0.6")  # uniform 0 is SFT, which it was fitted to
    for miss in foretold.misses:
        assert max(miss.proposed, miss.others) < 1e-9, miss
    words = {miss.measure: miss.words for miss in foretold.misses}
    assert words["length"] == "does not vary: there is nothing to predict"
    assert words["reward"] == "predicts well"
    assert all(
        name.startswith("proposed ") and proposal.holds
        for name, proposal in zip(foretold.names, foretold.proposals, strict=True)
    )
    assert foretold.fronts.keys() == {("reward", "abilities")}
    ratios, values = foretold.fronts["reward", "abilities"]
    assert values[:, 0] == pytest.approx(reward_at(ratios))


def test_what_is_written_predicts_what_was_predicted() -> None:
    """Coefficients and terms are all that anybody needs."""
    results, foretold = foretold_of_quadratics()
    said = json.loads(json.dumps(foretold_json(results, foretold)))
    assert said["terms"] == ["1", "z0", "z1", "z2", "z0*z0", "z0*z1", "z0*z2", "z1*z1", "z1*z2", "z2*z2"]
    for proposal in said["proposals"]:
        z = dict(zip(("z0", "z1", "z2"), (2 * ratio - 1 for ratio in proposal["ratios"]), strict=True))
        row = [np.prod([z[factor] for factor in term.split("*")]) if term != "1" else 1.0 for term in said["terms"]]
        assert row == pytest.approx(terms(np.array([proposal["ratios"]]))[0])
        for name, measure in said["measures"].items():
            assert np.dot(row, measure["coefficients"]) == pytest.approx(proposal["predicted"][name])
            assert proposal["predicted"][name] == pytest.approx(proposal["measured"][name][0])
    assert list(said["measures"]["reward"]["left_out"]) == said["fitted"]


def test_a_measure_that_nothing_moves_proposes_nothing() -> None:
    predicting = plan_surrogate(recipe(), 1, 1)
    rows = [("sft", "sft", (0.0,)), ("rlhf", "rlhf", (1.0,)), (predicting.points[0].name, "surrogate", (0.5,))]
    results = measured(rows)
    only = Results({"length": LENGTH}, results.points)
    proposed, why_not = proposed_points(recipe(), predicting, only, [])
    assert proposed == []
    assert (
        why_not
        == "The surrogate proposed nothing: RLHF moved no measure that has a direction: there is nothing to choose by."
    )
    foretold = foretell(only, predicting, proposed, why_not)
    assert (foretold.note, foretold.names) == (why_not, ())
    assert [miss.words for miss in foretold.misses] == ["not known: as many points as coefficients"]


def test_words_for_new_points_and_those_left_out() -> None:
    surface = Surface("reward", np.ones(6), np.zeros(8), 0.01, 0.5)
    nan = float("nan")
    assert (
        _in_words(surface, 0.01, 0.6)
        == "at new points predicts about as well as can be measured; at those left out does not predict"
    )
    assert (
        _in_words(surface, 0.1, 0.1) == _in_words(surface, nan, 0.1) == _in_words(surface, 0.1, nan) == "predicts well"
    )


def test_models_that_are_no_end_of_the_ratios() -> None:
    """With embeddings of SFT's, no ratios of blocks give RLHF: the design has the corners instead."""
    assert plan_surrogate(recipe(), 2, 4).ends
    held = plan_surrogate(recipe(ratios={"blocks": [0.5], "embeddings": 0}), 2, 6)
    assert not held.ends
    assert {"surrogate 0,0", "surrogate 1,1"} <= {point.name for point in held.points}
    with pytest.raises(
        AmataxError, match="--surrogate 5: a quadratic in 2 ratios has 6 coefficients: 5 merges cannot"
    ) as few:
        plan_surrogate(recipe(ratios={"blocks": [0.5], "embeddings": 0}), 2, 5)
    assert "SFT and RLHF do not count" in few.value.hint


@pytest.mark.parametrize(
    ("blocks", "count", "said", "hint"),
    [
        (
            3,
            7,
            "--surrogate 7: a quadratic in 3 ratios has 10 coefficients: 7 merges with SFT and RLHF cannot",
            "measure 8",
        ),
        (3, 26, "no more than 25 points: not 26", "ask for 8 to 25"),
        (1, 2, "a design in 1 ratio, at three levels of each, has no more than 1 points", "ask for 1"),
        (10, 70, "10 ratios has 66 coefficients", "at most 9 --blocks"),
        (5, 201, "more than 200", "--grid"),
    ],
)
def test_surrogates_that_cannot_be(blocks: int, count: int, said: str, hint: str) -> None:
    with pytest.raises(AmataxError, match=said) as caught:
        plan_surrogate(recipe(), blocks, count)
    assert hint in caught.value.hint


def test_several_numbers_of_blocks(distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(AmataxError, match="--surrogate fits one number of blocks, not 2, 3"):
        sweep(tmp_path / "s", distilled, blocks=[2, 3])
    assert not (tmp_path / "s").exists()


def sweep(folder: Path, data: Path, **options: Any) -> Swept:
    wishes = {"surrogate": 4, "blocks": [2], "device": "cpu", "open_tasks": tasks_of(data)}
    return api.sweep(RECIPE, folder, **{**wishes, **options})


@pytest.fixture(scope="module")
def whole(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = (
        tmp_path_factory.mktemp("surrogate") / "s"
    )  # as deep as the others: chosen.yaml names the models from there
    sweep(folder, distilled)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_few_points_and_what_they_propose(whole: Path, distilled: Path, tmp_path: Path) -> None:
    ahead = api.preview_sweep(
        RECIPE, tmp_path / "s", surrogate=4, blocks=[2], device="cpu", open_tasks=tasks_of(distilled)
    )
    assert [point.kind for point in ahead.points] == ["sft", "rlhf", *["surrogate"] * 4]
    assert ahead.proposals == 3
    assert ahead.samples_left == 9 * 2 * COUNT
    assert not (tmp_path / "s").exists()
    shutil.copytree(whole, tmp_path / "s")
    swept = sweep(tmp_path / "s", distilled)
    assert swept.measured == 0  # the proposals are known, too
    assert files(tmp_path / "s") == files(whole)
    assert [point.kind for point in swept.results.points] == ["sft", "rlhf", *["surrogate"] * 4, *["proposed"] * 3]
    assert swept.foretold is not None
    assert swept.outcome is not None
    assert swept.outcome.choice is not None
    assert swept.outcome.choice.point in swept.results.points  # measured, never predicted
    said = json.loads((whole / SURROGATE).read_text())
    by_name = {point.name: point for point in swept.results.points}
    for proposal in said["proposals"]:
        nats, tokens = by_name[proposal["point"]].measured["nll"].sums.sum(0)
        assert proposal["measured"]["nll"][0] == pytest.approx(nats / tokens)
        assert proposal["ratios"] == [by_name[proposal["point"]].ratios[f"blocks.{i}"] for i in range(2)]
    assert "What was predicted" in (whole / "report.html").read_text()


def test_stopped_anywhere_it_comes_out_the_same(whole: Path, distilled: Path, tmp_path: Path) -> None:
    """Among the design's points, between them and the proposals, and among those; other ways do not change what is proposed."""
    lines = (whole / JOURNAL).read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b"proposed" in line)
    for keep in (first - 3, first, len(lines) - 2):
        folder = tmp_path / str(keep)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:keep]) + lines[keep][:9])
        sweep(folder, distilled)
        assert files(folder) == files(whole), keep
    more = sweep(tmp_path / str(first), distilled, ways=["uniform"], alpha="0.5")
    assert more.foretold is not None
    assert list(more.foretold.names) == [
        entry["point"] for entry in json.loads((whole / SURROGATE).read_text())["proposals"]
    ]
    assert more.foretold.others == ("uniform 0.5",)
    plain = sweep(tmp_path / str(first), distilled, surrogate=0)
    assert plain.foretold is None
    assert not (tmp_path / str(first) / SURROGATE).exists()  # of an earlier run


def test_names_are_the_ratios() -> None:
    point = surrogate_point(recipe(), "proposed", (0.30000000000000004, 1.0, 0.125))
    assert point.name == "proposed 0.3,1,0.125"
    assert point.ratios["blocks.0"] == 0.3
