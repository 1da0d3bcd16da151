"""The page and the pictures: nothing from outside runs or loads, what is said is there, same results same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from amatax.errors import DataError
from amatax.evaluation.choice import choose
from amatax.evaluation.examples import examples
from amatax.evaluation.picture import draw_fronts, looks
from amatax.evaluation.report import write_report
from amatax.evaluation.requirements import parse_requirement
from amatax.evaluation.results import Measured, Point, Results, half_of
from amatax.evaluation.series import digits_for, series_of
from tests.evaluation.tables import ABILITIES, KL, LENGTH, REWARD, table

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</pre></style>]]>-->"
ROWS = {
    "sft": [0.2, 0.9, 0.0, 10],
    "rlhf": [0.8, 0.5, 0.4, 50],
    "uniform 0.3": [0.3, 0.89, 0.05, 30],
    "uniform 0.6": [0.7, 0.8, 0.2, 40],
    "fitted-3 0.3": [0.6, 0.85, 0.1, 40],
    "fitted-3 0.6": [0.75, 0.7, 0.15, 40],
}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """What a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def evil_results() -> Results:
    """Everything that comes from outside tries to break out of the page."""
    results = table((REWARD, ABILITIES, KL, LENGTH), ROWS, spread=0.05)
    points = []
    for point in results.points:
        measured = dict(point.measured)
        reward = measured["reward"]
        responses = tuple(f"{EVIL} {point.name}" for _ in reward.samples)
        measured["reward"] = Measured(reward.sums, reward.samples, responses)
        points.append(replace(point, measured=measured, ratios={"blocks.0": 0.1, "head": 0.2} if point.alpha else {}))
    named = replace(points[2], name=f"grid {EVIL}", kind="grid")
    settings = {"data": EVIL}
    measures = {n: m._replace(settings=settings) for n, m in results.measures.items()}
    return Results(measures, (*points, named))


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def test_nothing_from_outside_runs_or_loads(tmp_path: Path) -> None:
    results = evil_results()
    choice = choose(results, [parse_requirement("abilities >= 0.9*sft", results.measures)])
    path = write_report(
        results,
        tmp_path / "report.html",
        choice=choice,
        title=EVIL,
        about={EVIL: EVIL},
        prompts={"reward": dict.fromkeys(results.points[0].measured["reward"].samples, EVIL)},
        notes=[EVIL],
    )
    page = read(path)
    assert page.open == []  # every tag is closed, in order
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert [a for a in page.attributes if a[1].startswith("on")] == []
    assert [a for a in page.attributes if a[1] in ("src", "action", "srcset")] == []
    links = [value or "" for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    text = "".join(page.text)
    assert text.count(EVIL) > 12  # shown as it is: responses, prompts, names, settings, notes
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_only_its_own_script_may_run(tmp_path: Path) -> None:
    import base64

    text = write_report(evil_results(), tmp_path / "r.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    results = table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()}, spread=0.02)
    choice = choose(results, [parse_requirement("abilities >= 0.9*sft", results.measures)])
    assert choice.point is not None
    text = "".join(read(write_report(results, tmp_path / "r.html", choice=choice)).text)
    body = text[text.index("The reward-tax front", text.index("}")) :]
    assert body.index("Take fitted-3 0.3.") < body.index(
        "has 67% of RLHF's gain in reward and pays 12% of its tax in abilities"
    )
    assert (
        "Beside uniform averaging at the same alpha (uniform 0.3) it is better in reward, worse in abilities." in body
    )
    assert re.search(r"abilities >= 0\.9\*sft holds: 0\.8[45]\d*, where at least 0\.8[01]\d* was asked\.", body)


def test_nothing_that_holds_is_said(tmp_path: Path) -> None:
    results = table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()}, spread=0.02)
    choice = choose(results, [parse_requirement(r, results.measures) for r in ("abilities >= sft", "reward >= rlhf")])
    text = "".join(read(write_report(results, tmp_path / "r.html", choice=choice)).text)
    assert "No merge of 4 keeps what was asked. uniform 0.6 comes nearest." in text


def test_same_results_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.evaluation.test_report import *\n"
        "folder = Path(sys.argv[1]); results = evil_results()\n"
        "draw_fronts(results, folder, 'fitted-3 0.3'); write_report(results, folder / 'r.html', choice=choose(results))"
    )
    seen = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, folder], check=True, env=env)
        seen.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"front.png", "front.svg", "r.html"}


def test_a_picture_knows_no_time_and_no_pyplot(tmp_path: Path) -> None:
    results = table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()}, spread=0.02)
    draw_fronts(results, tmp_path, "fitted-3 0.3")
    assert "<dc:date>" not in (tmp_path / "front.svg").read_text()
    code = "import sys, tests.evaluation.test_report as t; t.draw_fronts(t.evil_results(), t.Path(sys.argv[1])); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_better_is_up_and_to_the_right() -> None:
    from matplotlib.figure import Figure

    from amatax.evaluation.picture import draw_pair

    results = table((REWARD, ABILITIES, KL), {k: v[:3] for k, v in ROWS.items()})
    axes = Figure().subplots()
    draw_pair(axes, results, "reward", "kl", "")
    assert axes.yaxis.get_inverted()
    assert not axes.xaxis.get_inverted()
    assert axes.get_ylabel() == "KL, less is better"


def test_a_predicted_front_is_dashed() -> None:
    from matplotlib.figure import Figure

    from amatax.evaluation.picture import draw_pair

    axes = Figure().subplots()
    foretold = np.array([[0.2, 0.9], [0.7, 0.8]])
    draw_pair(
        axes,
        table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()}),
        "reward",
        "abilities",
        "",
        {("reward", "abilities"): foretold},
    )
    (line,) = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert line.get_xydata().tolist() == foretold.tolist()


def test_without_a_gain_and_a_tax_there_is_no_picture(tmp_path: Path) -> None:
    results = table((REWARD,), {k: v[:1] for k, v in ROWS.items()})
    with pytest.raises(DataError, match="no front to draw"):
        draw_fronts(results, tmp_path)
    assert "no front to draw" in write_report(results, tmp_path / "r.html").read_text()


def test_lines() -> None:
    assert series_of(Point("parts input 0.3", "parts", 0.3)) == "parts input"
    assert series_of(Point("uniform 0.3", "uniform", 0.3)) == "uniform"
    assert series_of(Point("grid 0 1 0.5", "grid", 0.5)) == "grid"
    assert series_of(Point("my model", "model")) == "model"
    results = table((REWARD,), {"sft": [0.1], "fitted-3 0.3": [0.2], "uniform 0.3": [0.2]})
    assert looks(results)["uniform"] == ("#0072b2", "s")
    assert looks(results)["fitted-3"] != looks(results)["uniform"]


@pytest.mark.parametrize(("spread", "digits"), [(0.018, 3), (0.12, 2), (1.2, 1), (12.0, 0), (0.0, 3), (1e-9, 6)])
def test_digits(spread: float, digits: int) -> None:
    assert digits_for(spread) == digits


def test_examples_are_of_the_reported_half_and_differ() -> None:
    results = evil_results()
    shown = examples(results, results.points[:3])
    assert len(shown) == 4
    assert all(half_of(example.sample) == "report" for example in shown)
    one = results.points[0].measured["reward"].responses
    assert one is not None
    alike = replace(results.points[1], measured={"reward": results.points[0].measured["reward"]})
    assert examples(results, [results.points[0], alike]) == []


def test_what_was_predicted_is_marked_so(tmp_path: Path) -> None:
    """The dashed front says that it was not measured; names from outside stay text."""
    from amatax.evaluation.predicting import Foretold, Miss
    from amatax.evaluation.surrogate import Proposal, Surface

    results = table((REWARD, ABILITIES), {k: v[:2] for k, v in ROWS.items()})
    odd = replace(results.points[2], name=EVIL, kind="proposed")
    results = Results(results.measures, (*results.points, odd))
    surface = Surface("reward", np.zeros(3), np.array([0.1, np.nan]), 0.02, 0.3)
    foretold = Foretold(
        1,
        ("sft", "rlhf"),
        (Proposal((0.3,), {"reward": 0.31}, True),),
        (EVIL,),
        (),
        {"reward": surface},
        (Miss("reward", 0.1, float("nan"), float("nan"), 0.02, 0.3, f"well {EVIL}"),),
        {("reward", "abilities"): (np.array([[0.1], [0.2]]), np.array([[0.2, 0.9], [0.7, 0.8]]))},
        f"note {EVIL}",
    )
    page = read(write_report(results, tmp_path / "r.html", foretold=foretold))
    text = "".join(page.text)
    assert page.tags.count("script") == 1
    assert "Dashed: predicted, not measured." in text
    assert "predicted, not measured" in text.replace("Dashed: predicted, not measured.", "")  # in the picture's legend
    assert "0.310 → 0.300" in text
    for said in (f"note {EVIL}", f"well {EVIL}", "promises too much", "–"):
        assert said in text
    without = "".join(read(write_report(results, tmp_path / "r.html")).text)
    assert "What was predicted" not in without
    assert "Dashed" not in without
