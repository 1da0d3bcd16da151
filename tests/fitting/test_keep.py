"""Tax-aware fits: the bound is kept, the gradient of the divergence is right, faults are said."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from amatax import api
from amatax.commands.fit_ratios import _ratio_rows, recorded_lines, report_lines, trace_lines
from amatax.errors import AmataxError
from amatax.fitting.bootstrap import Interval
from amatax.fitting.fit import fit
from amatax.fitting.job import Fitted, fit_json
from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Optimum
from amatax.fitting.passes import Passes
from amatax.fitting.picture import draw_front
from amatax.fitting.problem import Keep
from amatax.fitting.records import read_records
from amatax.fitting.result import Fit, Part, Tradeoff
from amatax.fitting.samples import Sample, tokenize
from amatax.fitting.variables import Variables
from amatax.recipes.schema import Ratios
from tests.conftest import run_amatax
from tests.fitting.conftest import FAMILY, RECIPE


def test_a_tax_aware_fit_keeps_to_its_bound(samples: list[Sample], merged: tuple[Variables, MergedModel]) -> None:
    """KL(SFT || merged) is at most what was allowed, and no uniform average within it explains the data better."""
    variables, model = merged
    data, kept = samples[:8], samples[12:18]
    found = fit(
        model, variables, data, [], None, Passes(None, {}), watcher=api.Watcher(), keep=Keep(kept, [], most=0.05)
    )
    rows = {row.name: row for row in found.tradeoff}
    assert rows["sft"].kl == pytest.approx(0, abs=1e-6)
    assert rows["tax-aware"].kl <= 0.05 * 1.01
    assert rows["uniform"].kl == pytest.approx(rows["tax-aware"].kl, rel=5e-3)  # compared at the same price
    assert rows["rlhf"].kl > 0.05
    assert rows["tax-aware"].nll <= rows["uniform"].nll
    with torch.no_grad():
        model.variables.copy_(torch.tensor(found.values, dtype=torch.float64))
        total = 0.0
        for sample in kept:
            both = []
            for ratios in (model.everywhere(0), None):
                with model.merging(ratios):
                    both.append(model.model(torch.tensor([sample.ids])).logits[0].log_softmax(-1))
            before, after = (logs[sample.start - 1 : len(sample.ids) - 1] for logs in both)
            total += float((before.exp() * (before - after)).sum())
    count = sum(len(s.ids) - s.start for s in kept)
    assert total / count == pytest.approx(rows["tax-aware"].kl, rel=1e-4)


def measured(model: MergedModel, data: list[Sample], point: list[float], *, divergence: bool = False) -> float:
    with torch.no_grad():
        model.variables.copy_(torch.tensor(point, dtype=torch.float64))
    return measure(model, data, divergence=divergence).mean


@pytest.mark.parametrize(("alpha", "weight"), [(0.4, 1.0), (0.6, 0.2)])
def test_a_weighted_sum_is_as_low_as_the_lowest_of_a_grid(
    samples: list[Sample], merged: tuple[Variables, MergedModel], alpha: float, weight: float
) -> None:
    """Every (a1, a2, a3) on the 0.2 grid with that mean."""
    variables, model = merged
    data, kept = samples[:10], samples[12:18]
    watcher, passes = api.Watcher(), Passes(None, {})
    found = fit(model, variables, data, [], alpha, passes, watcher=watcher, keep=Keep(kept, [], weight=weight))

    def goal(point: list[float]) -> float:
        return measured(model, data, point) + weight * measured(model, kept, point, divergence=True)

    grid = [[i / 5 for i in g] for g in itertools.product(range(6), repeat=3) if sum(g) == round(15 * alpha)]
    heights = [goal(point) for point in grid]
    assert goal(found.values) <= min(heights) + 0.002 * (max(heights) - min(heights))
    assert sum(found.values) / 3 == pytest.approx(alpha, abs=1e-12)


def test_within_a_bound_no_point_of_a_grid_explains_the_data_better(
    samples: list[Sample], merged: tuple[Variables, MergedModel]
) -> None:
    """Every (a1, a2, a3) on the 0.25 grid that keeps to the bound, whatever its mean."""
    variables, model = merged
    data, kept, bound = samples[:6], samples[12:16], 0.1
    watcher, passes = api.Watcher(), Passes(None, {})
    found = fit(model, variables, data, [], None, passes, watcher=watcher, keep=Keep(kept, [], most=bound))
    grid = [[i / 4 for i in g] for g in itertools.product(range(5), repeat=3)]
    within = [point for point in grid if measured(model, kept, point, divergence=True) <= bound]
    heights = [measured(model, data, point) for point in within]
    assert 5 < len(within) < 100
    assert measured(model, data, found.values) <= min(heights) + 0.002 * (max(heights) - min(heights))
    assert measured(model, kept, found.values, divergence=True) <= bound * 1.001


@pytest.mark.parametrize("weight", [0.01, 0.3, 3.0])
def test_the_plain_row_is_a_plain_fit(
    samples: list[Sample], merged: tuple[Variables, MergedModel], weight: float
) -> None:
    """However far the tax-aware fit is from it: else the tax would seem to cost nothing."""
    variables, model = merged
    data, kept = samples[:8], samples[12:18]

    def fitted(keep: Keep | None) -> Fit:
        return fit(model, variables, data, [], 0.4, Passes(None, {}), watcher=api.Watcher(), keep=keep)

    plain, aware = fitted(None), fitted(Keep(kept, [], weight=weight))
    rows = {row.name: row for row in aware.tradeoff}
    assert rows["plain"].nll <= plain.fitted.fitted + 2e-5
    assert rows["plain"].nll <= rows["tax-aware"].nll
    assert rows["plain"].kl >= rows["tax-aware"].kl


def test_one_block_at_a_held_mean_is_refused_beyond_the_bound(distilled: Path, tmp_path: Path) -> None:
    """Nothing is left to fit, and the bound still has to hold."""
    wish = {"data": distilled, "keep": distilled, "alpha": 0.9, "blocks": 1, "holdout": 0.0}
    with pytest.raises(AmataxError, match=r"no ratios with a divergence of at most 0\.0001"):
        api.fit_ratios(RECIPE, tmp_path / "refused.yaml", max_kl=1e-4, **wish)
    assert not (tmp_path / "refused.yaml").exists()
    assert api.fit_ratios(RECIPE, tmp_path / "taken.yaml", max_kl=5, **wish).fits[0].fit.values == [0.9]


def test_several_bounds_are_traced(tmp_path: Path) -> None:
    """In a table, and as a front in a picture."""
    interval = Interval(-0.1, -0.2, -0.05)
    part = Part(samples=40, tokens=90, prompts=20, sft=0.6, rlhf=0.2, uniform=0.4, fitted=0.3, gain=interval)
    fits = []
    for bound, nll in ((0.02, 0.5), (0.1, 0.35)):
        rows = [Tradeoff("sft", 0.0, 0.6, 0.0), Tradeoff("rlhf", 1.0, 0.2, 0.9), Tradeoff("plain", 0.4, 0.3, 0.4)]
        rows += [Tradeoff("uniform", 0.3, nll + 0.05, bound), Tradeoff("tax-aware", 0.4, nll, bound)]
        one = Fit(
            alpha=0.4,
            names=["block 0", "block 1"],
            values=[0.2, 0.6],
            intervals=[None, None],
            held_by=["", ""],
            ratios=Ratios(blocks=[0.2, 0.6]),
            fitted=part,
            held_out=None,
            verdict="not tested",
            optima=1,
            descent=Optimum([0.2, 0.6], nll, 2, [0.4, 0.4], [0.4, nll]),
            passes=2,
            tradeoff=rows,
            bound=bound,
        )
        fits.append(Fitted(tmp_path / f"f-kl{bound}.yaml", one, {}))
    assert "verdict of the NLL alone: not tested: no part of the data was held out" in report_lines(fits[0])
    assert any("-0.1000 (-0.2000 to -0.0500)" in line for line in report_lines(fits[0]))
    part.gain = Interval(-1e-5, -2e-5, -0.5e-5)
    assert any("-1.0e-05 (-2.0e-05 to -5.0e-06)" in line for line in report_lines(fits[0]))
    shown = [line.split() for line in trace_lines(fits)[3:]]
    assert [row[2:4] for row in shown if row] == [[b, n] for b in ("0.02,", "0.1,") for n in ("uniform", "tax-aware")]
    assert trace_lines(fits[:1]) == []
    part.prompts = 9
    assert any("-1.0e-05 (too few prompts)" in line for line in report_lines(fits[0]))
    draw_front([fitted.fit for fitted in fits], tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("values", "held_by", "changes", "said"),
    [
        ([1.0, 0.2], ["bound", ""], {}, ["at the bound", "the others and the mean fix it"]),
        (
            [1.0, 0.2],
            ["bound", ""],
            {"held_alpha": False},
            ["at the bound", "no interval: no clear optimum, or few prompts"],
        ),
        (
            [0.8, 0.4],
            ["", "regulariser"],
            {},
            ["the others and the mean fix it", "the regulariser holds it at the mean"],
        ),
        ([0.7, 0.5], ["", ""], {}, ["no interval: no clear optimum, or few prompts"] * 2),
        ([0.7, 0.5], ["", ""], {"ended_early": True}, ["", ""]),
        ([0.6], [""], {}, ["the mean fixes it"]),
    ],
)
def test_why_a_ratio_has_no_interval(
    values: list[float], held_by: list[str], changes: dict[str, bool], said: list[str]
) -> None:
    part = Part(samples=40, tokens=90, prompts=20, sft=0.6, rlhf=0.2, uniform=0.4, fitted=0.3, gain=Interval(0, 0, 0))
    found = Fit(
        alpha=0.6,
        names=[f"block {i}" for i in range(len(values))],
        values=values,
        intervals=[None] * len(values),
        held_by=held_by,
        ratios=Ratios(blocks=values),
        fitted=part,
        held_out=None,
        verdict="not tested",
        optima=1,
        descent=Optimum(values, 0.3, 1, [0.3]),
        passes=1,
        **changes,
    )
    assert [row[3] for row in _ratio_rows(found)] == said


def test_the_gradient_of_the_divergence(samples: list[Sample], merged: tuple[Variables, MergedModel]) -> None:
    _, model = merged
    model.hold_mean(None)
    data = samples[:4]

    def at(values: list[float], gradient: bool = False) -> Measured:
        with torch.no_grad():
            model.variables.copy_(torch.tensor(values, dtype=torch.float64))
        return measure(model, data, gradient=gradient, divergence=True)

    values, step = [0.6, 0.3, 0.5], 0.02
    slope = at(values, True).gradient
    for i in range(3):
        ends = [at([v + sign * step * (i == j) for j, v in enumerate(values)]).mean for sign in (1, -1)]
        assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-4)


def test_a_bounded_fit_from_end_to_end(distilled: Path, tmp_path: Path) -> None:
    """What it says of the ratios, of their mean and of both parts of what is kept: in words, to scripts and in the recipe."""
    kept = tmp_path / "K.jsonl"
    kept.write_text("".join(line + "\n" for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[:32]))
    wish = {"data": distilled, "keep": kept, "max_kl": 0.05, "blocks": 3, "holdout": 0.3}
    (fitted,) = api.fit_ratios(RECIPE, tmp_path / "f.yaml", **wish).fits
    found, told = fitted.fit, json.loads(json.dumps(fit_json(fitted), allow_nan=False))
    assert found.kept is not None
    assert found.kept_held_out is not None
    assert found.kept.samples + found.kept_held_out.samples == 32
    assert found.kept.fitted <= 0.05 * 1.001
    assert found.kept.fitted == pytest.approx(found.kept.uniform, rel=1e-4)
    assert found.kept.sft == 0 < found.kept.fitted < found.kept.rlhf
    assert (told["kept"]["fitted"], told["kept_held_out"]["fitted"]) == (found.kept.fitted, found.kept_held_out.fitted)
    assert told["kept"]["gain"] == list(found.kept.gain)

    assert found.alpha_interval is not None
    assert 0 < found.alpha_interval.low < found.alpha < found.alpha_interval.high < 1
    assert told["alpha_interval"] == list(found.alpha_interval[1:])
    assert found.alpha == pytest.approx(sum(found.values) / 3, abs=1e-6)
    assert any(found.intervals)
    lines = report_lines(fitted)
    mean = f"fitted at mean {found.alpha:g}, {found.alpha_interval.low:.3f} to {found.alpha_interval.high:.3f}, KL"
    assert lines[0].startswith(mean)
    for line, value, interval, holder in zip(lines[1:], found.values, found.intervals, found.held_by, strict=False):
        assert (holder == "bound") == (value in (0.0, 1.0)) == line.endswith("at the bound")
        assert (interval is None) == (holder == "bound")
        assert interval is None or line.endswith(f"{interval.low:.3f} to {interval.high:.3f}")
    (row,) = (line for line in lines if line.startswith("kept, fitted part"))
    assert f"({found.kept.samples} samples" in row
    assert f"{found.kept.rlhf:.4f}  " in row
    (row,) = (line for line in lines if line.startswith("kept, held out"))
    assert f"({found.kept_held_out.samples} samples" in row
    assert f"{found.kept_held_out.rlhf:.4f}  " in row
    assert "KL(SFT || merged), held out" in "\n".join(lines)

    record = yaml.safe_load((tmp_path / "f.yaml").read_text())["record"]["fit"]
    assert record["kl"]["fitted_part"]["fitted"] == round(found.kept.fitted, 6)
    assert record["kl"]["held_out"]["gain"] == [round(number, 6) for number in found.kept_held_out.gain]
    ends = [None if known is None else [round(known.low, 6), round(known.high, 6)] for known in found.intervals]
    assert list(record["intervals"].values()) == ends
    assert told["intervals"] == [None if known is None else [known.low, known.high] for known in found.intervals]
    again = "\n".join(recorded_lines(record))
    of_same = f"by {record['compared_with']}"
    assert f"kept, held out: KL(SFT || merged) {found.kept_held_out.fitted:.4f} nats per token, " in again
    assert again.count(of_same) == 4
    assert "verdict: " in again
    assert "verdict of the NLL alone" in "\n".join(recorded_lines({**record, "compared_with": None}))


def test_one_block_within_a_bound_is_the_uniform_average(distilled: Path, tmp_path: Path) -> None:
    wish = {"data": distilled, "keep": distilled, "max_kl": 0.03, "blocks": 1, "holdout": 0.5}
    found = api.fit_ratios(RECIPE, tmp_path / "f.yaml", **wish).fits[0].fit
    assert found.held_out is not None
    assert found.held_out.prompts == 12
    assert found.held_out.gain == (0.0, 0.0, 0.0)
    assert found.verdict == "indistinguishable"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-kl", "0.1"], ["need --keep"]),
        (["--keep", "D.jsonl"], ["--keep needs --max-kl or --keep-weight"]),
        (["--keep", "D.jsonl", "--max-kl", "0.1", "--keep-weight", "1"], ["one of them only"]),
        (["--keep", "D.jsonl", "--max-kl", "-1"], ["positive"]),
        (["--keep", "D.jsonl", "--max-kl", "nan"], ["positive"]),
        (["--keep", "absent.jsonl", "--max-kl", "0.1"], ["absent.jsonl: no such file"]),
    ],
)
def test_faults_of_a_tax_aware_fit(distilled: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    shutil.copy(distilled, tmp_path / "D.jsonl")
    done = run_amatax("fit-ratios", RECIPE, "--data", "D.jsonl", "-o", "f.yaml", *arguments, cwd=tmp_path)
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "->" in done.err


def test_what_is_kept_is_kept_by_what_is_written(distilled: Path, tmp_path: Path) -> None:
    """The KL in the report is that of the folder that `merge` writes, loaded with transformers, one sample after another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = {role: str(FAMILY / role) for role in ("sft", "rlhf")}
    recipe = {"models": models, "output": {"dtype": "float32"}}
    kept = tmp_path / "K.jsonl"
    kept.write_text("".join(line + "\n" for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[:6]))
    wish = {"data": distilled, "keep": kept, "alpha": 0.4, "keep_weight": 1.0, "blocks": 2, "holdout": 0.0}
    (fitted,) = api.fit_ratios(recipe, tmp_path / "f.yaml", **wish).fits
    (said,) = (row.kl for row in fitted.fit.tradeoff if row.name == "tax-aware")
    assert fitted.fit.kept is not None
    assert (fitted.fit.kept.samples, fitted.fit.kept.fitted) == (6, said)
    assert fitted.fit.kept_held_out is None
    api.merge(tmp_path / "f.yaml", tmp_path / "out")

    sft, merged = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (FAMILY / "sft", tmp_path / "out")
    )
    records, _ = read_records(kept, responses=True)
    total, count = 0.0, 0
    for sample in tokenize(records, AutoTokenizer.from_pretrained(FAMILY / "sft"), raw=False)[0]:
        with torch.no_grad():
            before, after = (model(torch.tensor([sample.ids])).logits[0].log_softmax(-1) for model in (sft, merged))
        response = slice(sample.start - 1, len(sample.ids) - 1)
        total += float((before.exp() * (before - after))[response].sum())
        count += len(sample.ids) - sample.start
    assert said > 1e-4
    assert said == pytest.approx(total / count, rel=1e-3)
