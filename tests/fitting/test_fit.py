"""amatax fit-ratios from the command line, on the family: the report is true, a killed fit continues, faults are said."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml

from amatax import api
from amatax.commands.fit_ratios import trace_lines
from amatax.errors import OutputError
from amatax.fitting import search
from amatax.fitting.evidence import Interval
from amatax.fitting.fit import fit
from amatax.fitting.job import Fitted
from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import MergedModel, load_merged_model
from amatax.fitting.optimum import Optimum
from amatax.fitting.passes import Passes
from amatax.fitting.picture import draw_front
from amatax.fitting.problem import Keep
from amatax.fitting.records import read_records
from amatax.fitting.result import Fit, Part, Tradeoff
from amatax.fitting.samples import Sample, split_off, tokenize
from amatax.fitting.variables import Variables, choose_variables, tensor_groups
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Ratios
from tests.conftest import Run, run_amatax
from tests.fitting.conftest import FAMILY

RECIPE = FAMILY.parent / "quickstart.yaml"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FAMILY / "sft")


@pytest.fixture(scope="module")
def samples(distilled: Path, tokenizer: object) -> list[Sample]:
    records, _ = read_records(distilled, responses=True)
    return tokenize(records, tokenizer, raw=False)[0]


@pytest.fixture(scope="module")
def merged() -> tuple[Variables, MergedModel]:
    plan = make_plan(load_recipe(RECIPE))
    variables = choose_variables(plan.ratios, plan.model, 3, groups=False, free_head=False, weigh_by_layers=False)
    groups, rows = tensor_groups(plan, variables)
    return variables, load_merged_model(plan, groups, rows, compute=torch.float32)


@pytest.mark.parametrize("few", [6, 32])
def test_as_good_as_the_best_of_a_grid(
    few: int, samples: list[Sample], merged: tuple[Variables, MergedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every (a1, a2, a3) on the 0.2 grid with mean 0.4 against the fit on the same samples, by way of few and of all."""
    variables, model = merged
    data = samples[:16]
    monkeypatch.setattr(search, "FEW", few)
    found = fit(model, variables, data, [], 0.4, Passes(None, {}), watcher=api.Watcher())
    grid = [g for g in itertools.product(range(6), repeat=3) if sum(g) == 6]
    nlls = []
    for point in grid:
        with torch.no_grad():
            model.variables.copy_(torch.tensor(point, dtype=torch.float64) / 5)
        nlls.append(measure(model, data).mean)
    assert found.fitted.fitted <= min(nlls) + 0.002 * (max(nlls) - min(nlls))
    assert sum(found.values) == pytest.approx(1.2, abs=1e-12)
    assert found.verdict == "not tested"
    for value, interval in zip(found.values, found.intervals, strict=True):
        assert interval is None or interval.low <= value <= interval.high


def test_one_block_is_uniform(samples: list[Sample]) -> None:
    plan = make_plan(load_recipe(RECIPE))
    variables = choose_variables(plan.ratios, plan.model, 1, groups=False, free_head=False, weigh_by_layers=False)
    model = load_merged_model(plan, *tensor_groups(plan, variables), compute=torch.float32)
    found = fit(model, variables, samples[:8], samples[8:18], 0.3, Passes(None, {}), watcher=api.Watcher())
    assert found.values == [0.3]
    assert found.fitted.fitted == found.fitted.uniform
    assert found.verdict == "indistinguishable"


def test_the_parts_share_no_prompt(samples: list[Sample]) -> None:
    doubled = [*samples, *samples]
    train, held = split_off(doubled, 0.25, seed=1)
    assert len(held) == 12
    assert not {s.prompt for s in train} & {s.prompt for s in held}
    again = split_off(doubled[::-1], 0.25, seed=1)
    assert {s.prompt for s in again[1]} == {s.prompt for s in held}


def test_a_sample_ends_with_the_turn(samples: list[Sample], tokenizer: object, distilled: Path) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert all(s.ids[-1] == end and s.ids[s.start - 1] != end for s in samples)
    records, _ = read_records(distilled, responses=True)
    first = json.loads(distilled.read_text().splitlines()[0])
    assert tokenizer.decode(samples[0].ids[samples[0].start : -1]) == first["response"]
    cut = type(records[0])(1, {**first, "finish": "length"})
    (sample,), _ = tokenize([cut], tokenizer, raw=False)
    assert sample.ids == samples[0].ids[:-1]


def test_what_a_template_puts_before_a_response_is_the_prompts(tokenizer: object, distilled: Path) -> None:
    """Reasoning models' templates write an empty reasoning block before an answer that has none: RLHF did not say it."""
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}(thought: none) {% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = thinking.chat_template.replace("(thought: none) ", "")
    records, _ = read_records(distilled, responses=True)
    for one, other in zip(*(tokenize(records[:5], t, raw=False)[0] for t in (thinking, plain)), strict=True):
        assert one.ids[one.start :] == other.ids[other.start :]
        assert tokenizer.decode(one.ids[other.start : one.start]).strip() == "(thought: none)"


def test_from_data_to_a_merged_folder(distilled: Path, tmp_path: Path) -> None:
    """The NLL in the report is that of the folder that `amatax merge` writes, loaded with transformers."""
    done = run_amatax(
        "fit-ratios", RECIPE, "-o", "fitted.yaml", "--data", distilled, "--picture", "fit.png", "--json", cwd=tmp_path
    )
    assert done.code == 0, done.err
    (found,) = done.json["fits"]
    fitted = yaml.safe_load((tmp_path / "fitted.yaml").read_text())
    assert fitted["merge"]["ratios"] == found["values"]
    assert sum(found["values"]) == pytest.approx(1.2, abs=1e-12)
    assert fitted["record"]["fit"]["verdict"] == found["verdict"]
    assert "# before RLHF" in (tmp_path / "fitted.yaml").read_text()
    assert (tmp_path / "fit.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob("*unfinished*"))
    assert found["fitted"]["fitted"] < found["fitted"]["uniform"] < found["fitted"]["sft"]
    assert found["held_out"]["samples"] == 5

    assert run_amatax("merge", "fitted.yaml", "out", cwd=tmp_path).code == 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    records, _ = read_records(distilled, responses=True)
    whole, _ = tokenize(records, AutoTokenizer.from_pretrained(tmp_path / "out"), raw=False)
    total, count = 0.0, 0
    for sample in split_off(whole, 0.2, 0)[0]:
        with torch.no_grad():
            logs = model(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        total -= sum(float(logs[i - 1, sample.ids[i]]) for i in range(sample.start, len(sample.ids)))
        count += len(sample.ids) - sample.start
    assert total / count == pytest.approx(found["fitted"]["fitted"], rel=3e-3)  # the folder is rounded to bf16


def test_a_killed_fit_continues(distilled: Path, tmp_path: Path, forked: Callable[..., Run]) -> None:
    command = ["fit-ratios", str(RECIPE), "--data", str(distilled), "--holdout", "0", "--blocks", "2"]
    whole = forked(*command, "-o", "whole.yaml", cwd=tmp_path)
    assert whole.code == 0, whole.err
    journal = tmp_path / "killed.yaml.unfinished.jsonl"
    job = subprocess.Popen([sys.executable, "-m", "amatax", *command, "-o", "killed.yaml"], cwd=tmp_path)
    while job.poll() is None and (not journal.exists() or journal.read_text().count("\n") < 6):
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "killed.yaml").exists()
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as a crash leaves it
    again = forked(*command, "-o", "killed.yaml", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "continuing: 5 passes" in again.err or "continuing: 6 passes" in again.err, again.err
    assert (tmp_path / "killed.yaml").read_bytes() == (tmp_path / "whole.yaml").read_bytes()


def test_passes_of_other_inputs_are_not_taken(distilled: Path, tmp_path: Path, forked: Callable[..., Run]) -> None:
    """Two steps of one training run have the same names, sizes and headers: a journal of the one says nothing of the other."""
    for role in ("sft", "rlhf"):
        shutil.copytree(FAMILY / role, tmp_path / role)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("models: {sft: ./sft, rlhf: ./rlhf}\n")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in distilled.read_text().splitlines()[:4]))
    command = ["fit-ratios", "r.yaml", "--data", "few.jsonl", "--blocks", "2", "--holdout", "0", "-o", "f.yaml"]
    job = subprocess.Popen([sys.executable, "-m", "amatax", *command], cwd=tmp_path)
    journal = tmp_path / "f.yaml.unfinished.jsonl"
    while job.poll() is None and (not journal.exists() or journal.read_text().count("\n") < 4):
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    (weights,) = (tmp_path / "rlhf").glob("*.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-2000:] = bytes(2000)
    weights.write_bytes(raw)
    again = forked(*command, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "continuing" not in again.err


def test_no_more_blocks_than_layers_and_no_dead_unknowns(
    distilled: Path, tmp_path: Path, forked: Callable[..., Run]
) -> None:
    model = forked("inspect", FAMILY / "sft", "--json", cwd=tmp_path)
    assert model.code == 0
    shutil.copy(distilled, tmp_path / "D.jsonl")
    (tmp_path / "r.yaml").write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\n"
        'merge: {ratios: {blocks: [0.4], overrides: [{match: "*", ratio: 0.5}]}}\n'
    )
    done = forked("fit-ratios", "r.yaml", "--data", "D.jsonl", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "no tensor follows the ratio of block 0" in done.err


def test_several_alphas(distilled: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in distilled.read_text().splitlines()[:12]))
    result = api.fit_ratios(RECIPE, tmp_path / "f.yaml", data=few, alpha=[0.3, 0.5], blocks=2, device="cpu")
    assert [f.recipe.name for f in result.fits] == ["f-0.3.yaml", "f-0.5.yaml"]
    for fitted, alpha in zip(result.fits, (0.3, 0.5), strict=True):
        assert sum(fitted.fit.values) / 2 == pytest.approx(alpha, abs=1e-12)
        assert load_recipe(fitted.recipe).merge.ratios == fitted.fit.values
        assert fitted.fit.optima >= 1  # every alpha is looked around for: the best optimum may be another one

    def again(**wishes: object) -> object:
        return api.fit_ratios(
            RECIPE, tmp_path / "f.yaml", **{"data": few, "alpha": [0.3, 0.5], "blocks": 2, "device": "cpu", **wishes}
        )

    assert again().fits == []
    with pytest.raises(OutputError, match="from another fit or changed since"):
        again(weigh_by_layers=True)  # the same ratios of the tensors, another mean
    text = (tmp_path / "f-0.5.yaml").read_text()
    ratio = str(result.fits[1].fit.values[0])
    (tmp_path / "f-0.5.yaml").write_text(text.replace(f"[{ratio}", "[0.123"))
    with pytest.raises(OutputError, match=r"f-0.5.yaml exists, from another fit or changed since"):
        again()


def test_a_journal_is_one_runs_own(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml.unfinished.jsonl"
    found = Measured(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), None)
    first = Passes(path, {"data": "a"})
    first.measured("fit", [0.5], False, lambda: found)
    with pytest.raises(OutputError, match=r"f.yaml: another run is fitting"):
        Passes(path, {"data": "a"})
    first.close()
    with path.open("a") as file:
        file.write('{"x": 1}\n{"key": "fit 0.6"')
    with closing(Passes(path, {"data": "a"})) as again:
        assert again.known == 1
        again.measured("fit", [0.7], False, lambda: found)
    with closing(Passes(path, {"data": "a"})) as third:
        assert third.known == 2
    with closing(Passes(path, {"data": "b"})) as other:
        assert other.known == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent.jsonl"], ["absent.jsonl: no such file"]),
        ([], ["no data to fit on", "--data", "amatax distill"]),
        (["--data", "bad.jsonl"], ["bad.jsonl", "2 of 3 lines", "line 2", "line 3"]),
        (["--data", "D.jsonl", "--alpha", "1.5"], ["alpha is 1.5"]),
        (["--data", "D.jsonl", "--alpha", "nan"], ["alpha is nan"]),
        (["--data", "D.jsonl", "--alpha", "0.4", "--alpha", "0.4000001"], ["two fits are called 0.4"]),
        (["--data", "D.jsonl", "--regulariser", "nan"], ["a regulariser of nan"]),
        (["--data", "D.jsonl", "--blocks", "10"], ["10 blocks for a model of 9 layers"]),
        (["--data", "D.jsonl", "--holdout", "1"], ["held-out share of 1"]),
        (["--data", "one.jsonl"], ["1 prompts cannot be split"]),
        (["--data", "D.jsonl", "--max-length", "3"], ["no sample has a response within 3 tokens"]),
        (["--data", "D.jsonl", "-o", "taken.yaml"], ["taken.yaml exists", "--overwrite"]),
        (["--data", "D.jsonl", "-o", "no/where.yaml"], ["no such folder"]),
        (["--data", "D.jsonl", "--device", "cuda"], ["--device cuda"]),
        (["--data", "D.jsonl", "--picture", "no/where.png"], ["no PNG file"]),
        (["--data", "D.jsonl", "--holdout", "D.jsonl"], ["every prompt of the data is held out"]),
    ],
)
def test_faults(
    distilled: Path, tmp_path: Path, arguments: list[str], words: list[str], forked: Callable[..., Run]
) -> None:
    shutil.copy(distilled, tmp_path / "D.jsonl")
    good = distilled.read_text().splitlines()[0]
    (tmp_path / "bad.jsonl").write_text(f'{good}\n{{"prompt": "a"}}\n{{"prompt": "a", "response": ""}}\n')
    (tmp_path / "one.jsonl").write_text(good + "\n")
    (tmp_path / "taken.yaml").write_text("mine")
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "fitted.yaml"]
    done = forked("fit-ratios", RECIPE, *arguments, cwd=tmp_path)
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "->" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "fitted.yaml").exists()
    assert (tmp_path / "taken.yaml").read_text() == "mine"


def test_tokenizers_that_differ(distilled: Path, tmp_path: Path, forked: Callable[..., Run]) -> None:
    for role in ("sft", "rlhf"):
        shutil.copytree(FAMILY / role, tmp_path / role)
    (tmp_path / "r.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nfit: {alpha: 0.3, data: D.jsonl}\n")
    shutil.copy(distilled, tmp_path / "D.jsonl")
    path = tmp_path / "rlhf" / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    a, b = "Ġa", "Ġgood"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(text))
    done = forked("fit-ratios", "r.yaml", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "the tokenizers of sft and rlhf differ (tokenizer.json)" in done.err

    shutil.copy(FAMILY / "rlhf" / "tokenizer.json", path)
    config = tmp_path / "sft" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    (tmp_path / "sft" / "chat_template.jinja").unlink(missing_ok=True)
    done = forked("fit-ratios", "r.yaml", "-o", "f.yaml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "no chat template" in done.err
    assert "--raw" in done.err


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


def test_several_bounds_are_traced(tmp_path: Path) -> None:
    """In a table, and as a front in a picture."""
    interval = Interval(-0.1, -0.2, -0.05)
    part = Part(samples=4, tokens=9, sft=0.6, rlhf=0.2, uniform=0.4, fitted=0.3, gain=interval)
    fits = []
    for bound, nll in ((0.02, 0.5), (0.1, 0.35)):
        rows = [Tradeoff("sft", 0.0, 0.6, 0.0), Tradeoff("rlhf", 1.0, 0.2, 0.9), Tradeoff("plain", 0.4, 0.3, 0.4)]
        rows += [Tradeoff("uniform", 0.3, nll + 0.05, bound), Tradeoff("tax-aware", 0.4, nll, bound)]
        one = Fit(
            alpha=0.4,
            names=["block 0", "block 1"],
            values=[0.2, 0.6],
            intervals=[None, None],
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
    shown = [line.split() for line in trace_lines(fits)[3:]]
    assert [row[2:4] for row in shown if row] == [[b, n] for b in ("0.02,", "0.1,") for n in ("uniform", "tax-aware")]
    assert trace_lines(fits[:1]) == []
    draw_front([fitted.fit for fitted in fits], tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


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
def test_faults_of_a_tax_aware_fit(
    distilled: Path, tmp_path: Path, arguments: list[str], words: list[str], forked: Callable[..., Run]
) -> None:
    shutil.copy(distilled, tmp_path / "D.jsonl")
    done = forked("fit-ratios", RECIPE, "--data", "D.jsonl", "-o", "f.yaml", *arguments, cwd=tmp_path)
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "->" in done.err
