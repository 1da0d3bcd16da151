"""Measures by lm-evaluation-harness: what amatax says of a merge in memory is what the harness says of the written model."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from amatax import api
from amatax.errors import AmataxError, DataError, MeasureError, OutputError
from amatax.evaluation.results import Point, Results
from amatax.evaluation.statistics import standard_error, value_of
from amatax.evaluation.sweeping import JOURNAL, Swept
from amatax.recipes.gallery import gallery
from tests.conftest import Run
from tests.fitting.family import FAMILY

SHOWN = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
NORMED = {**SHOWN, "metric": "acc_norm"}
EXACT = {**SHOWN, "metric": "exact_match"}
BLEU = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
CHRF = {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}
CHOICES = {"measure": "lm_eval", "task": "family_choices", "num_fewshot": 2}
ANSWERS = {"measure": "lm_eval", "task": "family_answers", "chat_template": True, "limit": 16}
MEASURES = {
    "acc": {**CHOICES, "metric": "acc"},
    "norm": {**CHOICES, "metric": "acc_norm"},
    "exact": {**ANSWERS, "metric": "exact_match"},
    "bleu": {**ANSWERS, "metric": "bleu"},
    "words": {"measure": "lm_eval", "task": "family_text", "metric": "word_perplexity"},
    "bits": {"measure": "lm_eval", "task": "family_text", "metric": "bits_per_byte"},
}


def write_tasks(folder: Path, **more: dict[str, Any]) -> Path:
    """Tasks of the family's own questions, with their data beside them; `more` changes one by its name."""
    folder.mkdir()
    rows = [json.loads(line) for line in (FAMILY / "data" / "abilities.jsonl").read_text().splitlines()]
    facts = [row for row in rows if row["ability"] == "facts"]
    dice, answers = random.Random(0), sorted({row["response"] for row in facts})
    with (folder / "facts.jsonl").open("w") as file:
        for row in facts[:24]:
            choices = dice.sample([answer for answer in answers if answer != row["response"]], 3)
            right = dice.randrange(4)
            choices.insert(right, row["response"])
            long = f"{row['response']} is the right answer"
            line = {"question": row["prompt"], "choices": choices, "right": right, "response": row["response"]}
            file.write(json.dumps({**line, "sentence": long}) + "\n")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "facts.jsonl")}}}
    common: dict[str, Any] = {**data, "test_split": "test"}
    tasks: dict[str, dict[str, Any]] = {
        "family_choices": {
            **common,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_target": "right",
            "doc_to_choice": "choices",
            "metric_list": [SHOWN, NORMED],
        },
        "family_answers": {
            **common,
            "output_type": "generate_until",
            "doc_to_text": "{{question}} Answer in a sentence.",
            "doc_to_target": "sentence",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [EXACT, BLEU, CHRF],
        },
        "family_text": {
            **common,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{sentence}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task, **more.get(name, {})}))
    return folder


def write_recipe(path: Path, measures: dict[str, Any], ratio: float = 0.6) -> Path:
    models = {role: str(FAMILY / role) for role in ("sft", "rlhf")}
    recipe = {"models": models, "merge": {"ratios": ratio}, "output": {"dtype": "float32"}, "measures": measures}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `datasets` keeps what it has read: not the user's own folder."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))  # of commands
        yield folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("own") / "tasks")


def harness(model: Path, tasks: Path, name: str, **options: Any) -> Any:
    """The harness's own run of a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    model_args = {"pretrained": str(model)}
    return simple_evaluate(
        "hf", model_args, [name], device="cpu", batch_size=16, task_manager=manager, bootstrap_iters=0, **options
    )


def check_against_the_harness(results: Results, point: Point, written: Path, tasks: Path) -> None:
    """Every document's score and the whole task's number; exactly, but where numbers were added in another order."""
    whole = {
        "family_choices": harness(written, tasks, "family_choices", num_fewshot=2),
        "family_answers": harness(written, tasks, "family_answers", limit=16, apply_chat_template=True),
        "family_text": harness(written, tasks, "family_text"),
    }
    for name, measure in results.measures.items():
        task, metric = MEASURES[name]["task"], MEASURES[name]["metric"]
        assert measure.higher == whole[task]["higher_is_better"][task][metric]
        theirs, found = whole[task]["samples"][task], point.measured[name]
        assert found.samples == tuple(f"{task} {i}" for i in range(len(theirs)))
        value = whole[task]["results"][task][f"{metric},none"]
        if metric in ("acc", "acc_norm", "exact_match"):
            assert found.sums.tolist() == [[float(one[metric]), 1.0] for one in theirs], name
            assert value_of(measure, found) == value
        elif metric == "bleu":
            assert value_of(measure, found) == pytest.approx(value, rel=1e-12)
        else:
            assert found.sums.tolist() == [list(map(float, one[metric])) for one in theirs], name
            assert value_of(measure, found) == pytest.approx(value, rel=1e-12)
        if task == "family_answers":
            assert found.responses == tuple(one["resps"][0][0] for one in theirs)


def test_a_recipe_in_memory_is_the_harness_on_what_merge_writes(tasks: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", MEASURES)
    results = api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")
    api.merge(recipe, tmp_path / "out")
    check_against_the_harness(results, results.points[0], tmp_path / "out", tasks)
    values = {name: value_of(m, results.points[0].measured[name]) for name, m in results.measures.items()}
    assert 0 < values["acc"] < 1
    assert values["bleu"] > 0
    spread = results.points[0].measured["acc"].sums[:, 0].std(ddof=1) / 24**0.5
    assert standard_error(results.measures["acc"], results.points[0].measured["acc"]) == pytest.approx(spread)


def test_another_seed_draws_other_examples(tasks: Path, tmp_path: Path) -> None:
    seeds = {f"seed{seed}": {**CHOICES, "metric": "acc", "seed": seed} for seed in (1234, 7)}
    recipe = write_recipe(tmp_path / "r.yaml", seeds)
    tasks_of_two = api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")
    checksums = {name: measure.settings["data"] for name, measure in tasks_of_two.measures.items()}
    assert checksums["seed1234"] != checksums["seed7"]
    again = api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu", batch_size=3)
    for name, measured in again.points[0].measured.items():
        assert np.array_equal(measured.sums, tasks_of_two.points[0].measured[name].sums)
    assert checksums == {name: measure.settings["data"] for name, measure in again.measures.items()}


def sweep(recipe: Path, folder: Path, tasks: Path) -> Swept:
    return api.sweep(recipe, folder, alpha="0,0.3,1", device="cpu", lm_eval_tasks=tasks)


def test_too_few_documents_to_choose_by_are_seen_before_a_model_is(tasks: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"acc": {**MEASURES["acc"], "limit": 1}})
    for run in (api.preview_sweep, api.sweep):
        with pytest.raises(DataError, match="acc: 1 sample cannot be halved"):
            run(recipe, tmp_path / "s", alpha="0.5", lm_eval_tasks=tasks, require=["acc >= 0.5*sft"], device="cpu")


def test_each_ratio_of_a_sweep_is_asked_anew(tasks: Path, tmp_path: Path) -> None:
    """Two ratios in one process are each what the harness makes of the written merge; and it goes on where it was cut off."""
    measures = {name: MEASURES[name] for name in ("acc", "exact", "words")}
    recipe, folder = write_recipe(tmp_path / "r.yaml", measures), tmp_path / "s"
    swept = sweep(recipe, folder, tasks)
    by_name = {point.name: point for point in swept.results.points}
    words = {name: value_of(swept.results.measures["words"], p.measured["words"]) for name, p in by_name.items()}
    assert len({words["sft"], words["uniform 0.3"], words["rlhf"]}) == 3
    assert words["uniform 0"] == words["sft"]
    for point in ("uniform 0.3", "rlhf"):
        api.merge(swept.recipes[point], tmp_path / point)
        whole = harness(tmp_path / point, tasks, "family_text")["samples"]["family_text"]
        assert by_name[point].measured["words"].sums.tolist() == [list(one["word_perplexity"]) for one in whole]
    want = (folder / JOURNAL).read_bytes()
    assert sweep(recipe, folder, tasks).measured == 0
    (folder / JOURNAL).write_bytes(want[: int(len(want) * 0.6)])
    assert sweep(recipe, folder, tasks).measured > 0
    assert (folder / JOURNAL).read_bytes() == want
    shutil.copytree(tasks, tmp_path / "changed")
    facts = (tmp_path / "changed" / "facts.jsonl").read_text()
    (tmp_path / "changed" / "facts.jsonl").write_text(facts.replace(" is the right answer", " is the answer"))
    for path in (tmp_path / "changed").glob("*.yaml"):
        path.write_text(path.read_text().replace(str(tasks), str(tmp_path / "changed")))
    with pytest.raises(OutputError, match="measured with another measure"):
        sweep(recipe, folder, tmp_path / "changed")


def test_the_command_prints_json_alone(tmp_path: Path, amatax: Callable[..., Run]) -> None:
    """Bars and logs of the harness are not seen; what a task's code prints goes to stderr."""
    tasks = write_tasks(tmp_path / "tasks", family_choices={"process_docs": "HERE"})
    text = (tasks / "family_choices.yaml").read_text()
    (tasks / "family_choices.yaml").write_text(text.replace("HERE", "!function code.documents"))
    (tasks / "code.py").write_text("def documents(data):\n    print('chatty')\n    return data\n")
    write_recipe(tmp_path / "r.yaml", {"acc": MEASURES["acc"]})
    done = amatax("evaluate", "r.yaml", "--lm-eval-tasks", "tasks", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert set(done.err.split()) == {"chatty"}
    assert done.json["measures"]["acc"]["higher"] is True
    assert done.json["points"][0]["measured"]["acc"]["samples"] == 24


def fault(folder: Path, tasks: Path | None, **options: Any) -> str:
    recipe = write_recipe(folder / "r.yaml", {"m": {"measure": "lm_eval", **options}})
    with pytest.raises(MeasureError) as caught:
        api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"task": "family_choices"},
            "family_choices has several metrics (acc, acc_norm)\n  -> `metric:` one of acc, acc_norm",
        ),
        ({"task": "family_choices", "metric": "f1"}, "family_choices has no metric 'f1'"),
        (
            {"task": "family_answers", "metric": "chrf"},
            "chrf of family_answers is made of all documents at once (aggregation: chrf): it has no standard error by "
            "documents\n  -> `metric:` one of exact_match, bleu",
        ),
        (
            {"task": "family_choices", "metric": "acc", "filter": "strict"},
            "no filter 'strict'\n  -> `filter:` one of none",
        ),
        ({"task": "family_choices", "metric": "acc", "higher": False}, "of acc more is better, says the task"),
        ({"task": "family_choices", "metric": "acc", "max_new_tokens": 4}, "family_choices generates nothing"),
        (
            {"task": "family_answers", "metric": "bleu", "max_new_tokens": 256},
            "generates 256 tokens, and the model takes 256",
        ),
        ({"task": "family_choices", "metric": "acc", "data": "d.jsonl"}, "lm_eval takes no data"),
        ({"task": "family_choices", "metric": "acc", "limit": 0}, "limit"),
        ({"metric": "acc"}, "task"),
        ({"task": "family_choices", "metrik": "acc"}, "did you mean `metric`?"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(tasks: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    message = fault(tmp_path, tasks, **options)
    assert said in message
    assert f"{tmp_path / 'r.yaml'}:" in message


def test_tasks_that_cannot_be_asked(tmp_path: Path) -> None:
    gone = {"dataset_path": "nobody/nothing", "dataset_name": "big", "dataset_kwargs": None}
    tasks = write_tasks(tmp_path / "tasks", family_answers={"unsafe_code": True}, family_text=gone)
    (tmp_path / "tasks" / "shots.yaml").write_text(
        (tasks / "family_choices.yaml").read_text().replace("family_choices", "family_shots") + "\nnum_fewshot: 0\n"
    )
    said = fault(tmp_path, tasks, task="family_text", metric="word_perplexity")
    assert "family_text: the dataset nobody/nothing (big) cannot be loaded: " in said
    assert "datasets.load_dataset('nobody/nothing', 'big')" in said
    assert "runs code that the model writes" in fault(tmp_path, tasks, task="family_answers", metric="bleu")
    assert "asked without examples" in fault(tmp_path, tasks, task="family_shots", metric="acc", num_fewshot=1)


def test_unknown_tasks_and_groups_of_the_harness(tmp_path: Path) -> None:
    said = fault(tmp_path, None, task="arc_eazy", metric="acc")
    assert "there is no task 'arc_eazy' in lm_eval\n  -> did you mean `arc_easy`?" in said
    assert "it is a group of tasks; name each that you want: arc_challenge, arc_easy" in fault(
        tmp_path, None, task="ai2_arc", metric="acc"
    )
    said = fault(tmp_path, None, task="arc_easy", metric="acc")  # there is no network
    assert "arc_easy: the dataset allenai/ai2_arc (ARC-Easy) cannot be loaded: " in said


def test_code_comes_from_the_command_line_only(tmp_path: Path) -> None:
    """A task in the recipe's folder is not found by name or path; in --lm-eval-tasks it is, and runs."""
    code = {"process_docs": "HERE"}
    tasks = write_tasks(tmp_path / "tasks", family_choices=code)
    (tasks / "family_choices.yaml").write_text(
        (tasks / "family_choices.yaml").read_text().replace("HERE", "!function code.documents")
    )
    ran = tmp_path / "ran"
    (tasks / "code.py").write_text(
        f"from pathlib import Path\n\n\ndef documents(data):\n    Path({str(ran)!r}).touch()\n    return data\n"
    )
    for name in ("family_choices", str(tasks / "family_choices.yaml"), "./tasks/family_choices.yaml"):
        assert "there is no task" in fault(tmp_path, None, task=name, metric="acc")
    assert not ran.exists()
    recipe = write_recipe(tmp_path / "r.yaml", {"acc": MEASURES["acc"]})
    api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")
    assert ran.exists()


def test_the_folder_is_there_and_somebody_takes_it(tasks: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"acc": MEASURES["acc"]})
    with pytest.raises(DataError, match="no such folder"):
        api.evaluate([recipe], lm_eval_tasks=tmp_path / "none", device="cpu")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    recipe = write_recipe(tmp_path / "r.yaml", {"nll": {"measure": "nll", "data": "d.jsonl"}})
    with pytest.raises(DataError, match="no measure takes it"):
        api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")


def test_the_library_of_another_version(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amatax.evaluation import harness

    monkeypatch.setattr(harness, "version", lambda package: "0.5.1")
    assert "lm_eval 0.5.1 is installed, and amatax knows 0.4.12 to 0.4.x" in fault(
        tmp_path, tasks, task="t", metric="acc"
    )


def test_the_models_memory_holds_no_second_copy(tasks: Path, tmp_path: Path) -> None:
    """The harness asks the very model that it is given."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from amatax.evaluation.declared import declared_measures
    from amatax.evaluation.tasks import open_tasks
    from amatax.recipes.measures import load_measures

    write_recipe(tmp_path / "r.yaml", {"acc": MEASURES["acc"], "norm": MEASURES["norm"]})
    declared = declared_measures(load_measures(tmp_path / "r.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "sft")
    tokenizer.pad_token = None  # the harness gives one to a tokenizer without
    acc, norm = open_tasks(declared, tokenizer=tokenizer, device="cpu", lm_eval_tasks=tasks)
    model = AutoModelForCausalLM.from_pretrained(FAMILY / "sft").eval()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    ticks: list[int] = []
    acc.run(model, ticks.append)
    asked = len(calls)
    assert asked > 0
    assert sum(ticks) == acc.samples == 24
    norm.run(model, ticks.append)
    assert len(calls) == asked  # one run for both
    assert sum(ticks) == 48
    model.lm_head.weight.data.neg_()
    acc.run(model, ticks.append)
    assert len(calls) == 2 * asked  # other weights are another model
    assert tokenizer.pad_token is None


def test_where_the_harness_disagrees_nothing_is_said(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amatax.evaluation.measures import _aggregations

    wrong = _aggregations.AGGREGATIONS["mean"]._replace(value=lambda sums: sums[..., 0] / (sums[..., 1] + 1))
    monkeypatch.setitem(_aggregations.AGGREGATIONS, "mean", wrong)
    recipe = write_recipe(tmp_path / "r.yaml", {"acc": MEASURES["acc"]})
    with pytest.raises(AmataxError, match="by the harness"):
        api.evaluate([recipe], lm_eval_tasks=tasks, device="cpu")
    assert "lm_eval" in sys.modules


def documents(path: str, name: str | None) -> Any:
    """Two documents of a dataset of the paper's tasks, in its columns."""
    import datasets

    arc = {"question": "Name the colour.", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"}
    problem = {"question": "Which is right? _", "answer": "B", "options": ["red", "blue", "green", "white"]}
    answer = {"number": "12", "date": {"day": "", "month": "", "year": ""}, "spans": [], "worker_id": "", "hit_id": ""}
    validated: dict[str, Any] = {key: [] for key in answer}
    drop = {"query_id": "1", "passage": "They had 12 horses.", "question": "How many?", "answer": answer}
    rows: dict[str, dict[str, Any]] = {
        "allenai/ai2_arc": arc,
        "EleutherAI/race": {"article": "It was blue.", "problems": str([problem, problem])},
        "baber/piqa": {"goal": "Paint it.", "sol1": "With a brush.", "sol2": "With a hammer.", "label": 0},
        "hazyresearch/based-squad": {"text": " The table is black. The colour of the table is ", "value": " black "},
        "EleutherAI/drop": {**drop, "validated_answers": validated},
        "wmt/wmt14": {"translation": {"fr": "Le chat dort.", "en": "The cat sleeps."}},
    }
    split = datasets.Dataset.from_list([rows[path]] * 2)
    return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split))


def test_the_papers_tasks_are_the_harness_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the data, which are on the Hub: the recipe's tasks and metrics, their prompts and their scores."""
    import datasets

    asked: list[tuple[str, str | None]] = []

    def load(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        return documents(path, name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    recipe = yaml.safe_load(gallery()["paper-tasks"].read_text())
    for name in ("drop", "fr-en"):
        recipe["measures"][name]["max_new_tokens"] = 16  # the family takes 256 tokens
    (tmp_path / "measures.yaml").write_text(yaml.safe_dump(recipe["measures"], sort_keys=False))
    results = api.evaluate([FAMILY / "sft"], measures=tmp_path / "measures.yaml", device="cpu")
    measured = results.points[0].measured
    assert list(measured) == ["arc-easy", "arc-challenge", "race", "piqa", "squad", "drop", "fr-en"]
    assert ("allenai/ai2_arc", "ARC-Easy") in asked
    assert ("allenai/ai2_arc", "ARC-Challenge") in asked
    assert ("wmt/wmt14", "fr-en") in asked
    assert all(measure.higher for measure in results.measures.values())
    assert {name: m.sums.shape for name, m in measured.items()} == {
        **dict.fromkeys(measured, (2, 2)),
        "fr-en": (2, 10),
    }
    generated = [name for name, m in measured.items() if m.responses is not None]
    assert generated == ["squad", "drop", "fr-en"]
    for name, right in (("squad", "black"), ("drop", "12")):
        for response, (score, _) in zip(measured[name].responses or (), measured[name].sums.tolist(), strict=True):
            assert (right in response) == bool(score), (name, response)
