"""Results go to disk and come back, whole or not at all; anybody can compute the figures again from the CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from amatax.errors import DataError, NonFiniteError, OutputError
from amatax.evaluation.files import read_results, write_results
from amatax.evaluation.results import Measure, Measured, Point, Results, Sums, half_of
from amatax.evaluation.statistics import value_of
from tests.evaluation.tables import LENGTH, REWARD, ratio, scores

ODD = ["<script>alert(1)</script>", "a\u2028b\nc\r\n", "half \ud83d of a pair", "=SUM(A1)", ""]
NLL = Measure(
    "loss", "nll", False, ratio, {"data": "d.jsonl", "sha256": "ab", "raw": True, "where": {"ability": "facts"}}
)


def some() -> Results:
    nats = np.array([[1.5, 3.0], [0.1, 7.0], [1 / 3, 0.0], [2.0, 2.0], [1e-300, 1.0]])
    measured = {"reward": scores([0.1, 1 / 3, 0.5, -2.0, 1e-17], ODD), "loss": Measured(nats, tuple("abcde"))}
    points = (
        Point("sft", "sft", measured=measured),
        Point("fitted-3 0.4", "fitted-3", 0.4, {"blocks.0": 0.7, "blocks.1": 0.1, "head": 0.4}, measured),
        Point("rlhf", "rlhf", measured={"reward": measured["reward"]}),
    )
    return Results({"reward": REWARD, "loss": NLL, "length": LENGTH}, points)


def values(kind: str) -> Callable[[Sums], NDArray[np.float64]]:
    return {"reward": ratio, "nll": ratio, "length": ratio}[kind]


def same(one: Results, other: Results) -> bool:
    return one.measures == other.measures and all(
        replace(a, measured={}) == replace(b, measured={})
        and list(a.measured) == list(b.measured)
        and all(
            (m.sums == b.measured[n].sums).all()
            and (m.samples, m.responses) == (b.measured[n].samples, b.measured[n].responses)
            for n, m in a.measured.items()
        )
        for a, b in zip(one.points, other.points, strict=True)
    )


def test_there_and_back(tmp_path: Path) -> None:
    results = some()
    files = write_results(results, tmp_path)
    assert [file.name for file in files] == ["results.jsonl", "results.csv"]
    back = read_results(tmp_path, values)
    assert same(results, back)
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_results(back, tmp_path / "again")] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "results.csv", "results.jsonl"]


def test_the_figures_can_be_computed_from_the_csv(tmp_path: Path) -> None:
    results = some()
    write_results(results, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25
    here = [row for row in rows if row["point"] == "fitted-3 0.4" and row["measure"] == "loss"]
    assert sum(float(r["sum_1"]) for r in here) / sum(float(r["sum_2"]) for r in here) == pytest.approx(
        value_of(NLL, results.points[1].measured["loss"])
    )
    assert [row["score"] for row in here] == ["0.5", repr(0.1 / 7), "", "1.0", "1e-300"]  # the third has no tokens
    assert {(row["blocks.0"], row["blocks.1"], row["alpha"]) for row in here} == {("0.7", "0.1", "0.4")}
    assert all(row["half"] == half_of(row["sample"]) for row in rows)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_off_is_refused(keep: float, tmp_path: Path) -> None:
    path = write_results(some(), tmp_path)[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"cut off|not a line of results"):
        read_results(tmp_path, values)


def test_what_is_no_file_of_results(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path, values)
    path = tmp_path / "results.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    with pytest.raises(DataError, match=r"results\.jsonl:1: not a line of results"):
        read_results(tmp_path, values)
    path.write_text(json.dumps({"amatax_results": 99}) + "\n")
    with pytest.raises(DataError, match="format 99, not 1"):
        read_results(tmp_path, values)


def test_a_score_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    bad = Point("sft", "sft", measured={"reward": scores([0.1, float("nan")])})
    with pytest.raises(NonFiniteError, match="reward at sft: sample 2"):
        write_results(Results({"reward": REWARD}, (bad,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"results\.jsonl"):
        write_results(some(), tmp_path / "file")
