"""Declared measures on live models: the small family, against what other code makes of the same models."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amatax.errors import MeasureError
from amatax.evaluation import answering
from amatax.evaluation.declared import declared_measures
from amatax.evaluation.tasks import Task, open_tasks
from amatax.recipes.measures import load_measures
from tests.fitting.family import FAMILY, REWARD

Open = Callable[..., dict[str, Task]]


def silent(samples: int) -> None:
    """Nobody is told."""


def load(role: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FAMILY / role, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FAMILY / "sft")


@pytest.fixture(scope="module")
def sft() -> Any:
    return load("sft")


@pytest.fixture(scope="module")
def rlhf() -> Any:
    return load("rlhf")


@pytest.fixture
def opened(tmp_path: Path, tokenizer: Any) -> Open:
    """Tasks by name, of measures as they would be written; `data` are lines, or the name of a file of the family's."""

    def make(measures: dict[str, Any], data: str | list[Any], lines: int = 12, **options: Any) -> dict[str, Task]:
        if isinstance(data, str):
            text = "".join((FAMILY / "data" / f"{data}.jsonl").read_text().splitlines(keepends=True)[::20][:lines])
        else:
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in data)
        (tmp_path / "data.jsonl").write_text(text)
        wishes = {name: {"data": "data.jsonl", **measure} for name, measure in measures.items()}
        (tmp_path / "measures.yaml").write_text(json.dumps(wishes))
        tasks = open_tasks(
            declared_measures(load_measures(tmp_path / "measures.yaml")), tokenizer=tokenizer, device="cpu", **options
        )
        return {task.measure.name: task for task in tasks}

    return make


def value(task: Task, model: Any) -> float:
    measured = task.run(model, silent)
    assert len(measured.samples) == len(measured.sums) == task.samples
    return float(task.measure.value(measured.sums.sum(0)))


def hand_nats(model: Any, tokenizer: Any, prompt: str, response: str) -> tuple[float, int]:
    """One conversation by itself, in transformers' own words."""
    chat = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    chat.append({"role": "assistant", "content": response})
    text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logs[i - 1, ids[i]]) for i in range(len(asked), len(ids))), len(ids) - len(asked)


def test_nll_is_what_one_sample_after_another_gives(opened: Open, sft: Any, tokenizer: Any) -> None:
    task = opened({"nll": {"measure": "nll"}}, "keep")["nll"]
    rows = [json.loads(line) for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[::20][:12]]
    by_hand = [hand_nats(sft, tokenizer, row["prompt"], row["response"]) for row in rows]
    measured = task.run(sft, silent)
    assert measured.sums[:, 1].tolist() == [count for _, count in by_hand]
    np.testing.assert_allclose(measured.sums[:, 0], [nats for nats, _ in by_hand], rtol=1e-4, atol=1e-5)
    assert measured.samples == tuple(map(str, range(1, len(rows) + 1)))
    assert task.measure.higher is False


def test_kl_is_that_of_a_fits_kept_prompts(opened: Open, sft: Any, rlhf: Any, tokenizer: Any, tmp_path: Path) -> None:
    from amatax.fitting.likelihood import measure
    from amatax.fitting.merged_model import load_merged_model
    from amatax.fitting.records import read_records
    from amatax.fitting.samples import tokenize
    from amatax.fitting.variables import choose_variables, tensor_groups
    from amatax.planning.plan import make_plan
    from amatax.recipes.loading import load_recipe

    task = opened({"tax": {"measure": "kl"}}, "keep", sft=lambda: nullcontext(sft))["tax"]
    plan = make_plan(load_recipe(FAMILY.parent / "quickstart.yaml"))
    variables = choose_variables(plan.ratios, plan.model, 3, groups=False, free_head=False, weigh_by_layers=False)
    merged = load_merged_model(plan, *tensor_groups(plan, variables), compute=torch.float32)
    samples, _ = tokenize(read_records(tmp_path / "data.jsonl", responses=True)[0], tokenizer, raw=False)
    expected = measure(merged, samples, merged.everywhere(1), divergence=True)
    found = task.run(rlhf, silent)
    np.testing.assert_allclose(found.sums[:, 0], expected.sums.numpy(), rtol=1e-4, atol=1e-6)
    assert value(task, rlhf) == pytest.approx(expected.mean, rel=1e-5)
    assert expected.mean > 0.05
    assert value(task, sft) == pytest.approx(0, abs=1e-7)


def test_kl_on_bare_prompts_goes_along_what_sft_answers(opened: Open, sft: Any, rlhf: Any, tokenizer: Any) -> None:
    prompts = [{"prompt": json.loads(line)["prompt"]} for line in (FAMILY / "data" / "open.jsonl").open()][:6]
    options = {"measure": "kl", "max_new_tokens": 24}
    first = opened({"tax": {**options}}, prompts, sft=lambda: nullcontext(sft))["tax"].run(rlhf, silent)
    again = opened({"tax": {**options}}, prompts, sft=lambda: nullcontext(sft), batch_size=1)["tax"].run(rlhf, silent)
    np.testing.assert_allclose(first.sums, again.sums, rtol=1e-4, atol=1e-6)
    other = opened({"tax": {**options, "seed": 1}}, prompts, sft=lambda: nullcontext(sft))["tax"].run(rlhf, silent)
    assert not np.allclose(first.sums, other.sums)
    assert first.sums[:, 0].min() > 0


def test_multiple_choice_takes_the_likeliest(opened: Open, sft: Any, tokenizer: Any) -> None:
    colours = ["black", "red", "purple", "white"]
    rows = [
        {"prompt": "Name the colour of the table.", "choices": colours, "answer": "black"},
        {"prompt": "Name the colour of the ant.", "choices": colours, "answer": 1},
        {"prompt": "What colour is the crab?", "choices": colours[1:], "answer": 2},  # it is purple
    ]
    task = opened({"choice": {"measure": "multiple_choice"}}, rows)["choice"]
    right = []
    for row in rows:
        nats = [hand_nats(sft, tokenizer, row["prompt"], choice)[0] for choice in row["choices"]]
        answer = row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])
        right.append(float(nats.index(min(nats)) == answer))
    told: list[int] = []
    assert task.run(sft, told.append).sums[:, 0].tolist() == right == [1, 1, 0]
    assert sum(told) == 3


ANSWERED = {
    "exact": {"measure": "exact_match", "max_new_tokens": 12},
    "f1": {"measure": "f1", "max_new_tokens": 12},
    "length": {"measure": "length", "max_new_tokens": 12},
    "facts": {"measure": "exact_match", "max_new_tokens": 12, "where": {"ability": "facts"}},
}


def test_answers_are_generated_once_for_all_measures_and_anew_for_other_weights(
    opened: Open, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = answering.answer_batches

    def counted(model: Any, tokenizer: Any, records: Any, prompts: Any, batches: Any, *rest: Any, **more: Any) -> Any:
        asked.append(sum(map(len, batches)))
        return real(model, tokenizer, records, prompts, batches, *rest, **more)

    monkeypatch.setattr(answering, "answer_batches", counted)
    tasks = opened(ANSWERED, "abilities", 20)
    model, told = load("sft"), []
    before = {name: task.run(model, told.append) for name, task in tasks.items()}
    assert asked == [20]
    assert sum(told) == sum(task.samples for task in tasks.values())
    assert 0 < tasks["facts"].samples < 20
    model.load_state_dict(load("rlhf").state_dict())  # in place, as a sweep does
    after = tasks["length"].run(model, silent)  # not the first of them
    assert asked == [20, 20]
    assert after.responses != before["length"].responses
    assert after.responses == opened(ANSWERED, "abilities", 20)["length"].run(load("rlhf"), silent).responses


def test_other_settings_are_another_generation(opened: Open, sft: Any) -> None:
    tasks = opened(
        {"short": {"measure": "length", "max_new_tokens": 2}, "long": {"measure": "length", "max_new_tokens": 9}},
        "open",
        4,
    )
    assert value(tasks["short"], sft) == 2 < value(tasks["long"], sft) <= 9


def test_the_batch_size_changes_nothing(opened: Open, rlhf: Any) -> None:
    seen = [opened(ANSWERED, "abilities", 14, batch_size=size)["exact"].run(rlhf, silent) for size in (1, 3, 100)]
    assert len({one.responses for one in seen}) == 1
    assert all((one.sums == seen[0].sums).all() for one in seen)


def test_a_live_model_keeps_its_own_generation_config(opened: Open, sft: Any) -> None:
    own = sft.generation_config
    opened({"length": {"measure": "length", "max_new_tokens": 2}}, "open", 2)["length"].run(sft, silent)
    assert sft.generation_config is own


def test_a_sampled_answer_hangs_on_its_seed_and_place_alone(opened: Open, sft: Any) -> None:
    drawn = {"measure": "length", "max_new_tokens": 16, "temperature": 1.0}
    one = opened({"a": drawn}, "open", 6)["a"].run(sft, silent).responses
    assert one == opened({"a": drawn}, "open", 6, batch_size=1)["a"].run(sft, silent).responses
    assert one != opened({"a": {**drawn, "seed": 1}}, "open", 6)["a"].run(sft, silent).responses


def test_a_reward_model_scores_the_answers(opened: Open, sft: Any, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(3)
    judge = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=928, num_labels=1, architectures=["LlamaForSequenceClassification"], **sizes)
    ).eval()
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    task = opened({"r": {"measure": "reward", "model": "./judge", "max_new_tokens": 8}}, "open", 3)["r"]
    measured = task.run(sft, silent)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").open()]
    assert measured.responses is not None
    for row, response, sums in zip(rows, measured.responses, measured.sums, strict=True):
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
        judge.config.pad_token_id = 900  # stands nowhere
        with torch.no_grad():
            assert float(judge(torch.tensor([ids])).logits[0, 0]) == pytest.approx(float(sums[0]), rel=1e-4)
    assert len({float(row[0]) for row in measured.sums}) > 1


CHOICES = {"prompt": "p", "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("measure", "lines", "words"),
    [
        ({"measure": "nll"}, [{"prompt": "a", "response": "b"}, {"prompt": "a"}], "line 2: no `response`"),
        ({"measure": "f1"}, [{"prompt": "a"}], "line 1: no right answer: neither `response` nor `references`"),
        ({"measure": "f1"}, [{"prompt": "a", "references": []}], "line 1: `references` is no list of texts"),
        ({"measure": "bleu"}, [{"prompt": "a", "references": "b"}], "line 1: `references` is no list of texts"),
        ({"measure": "f1"}, [{"prompt": "a", "response": 3}], "line 1: `response` is not text"),
        ({"measure": "length"}, [{"promt": "a"}], "line 1: no `prompt` and no `messages`"),
        ({"measure": "length"}, ["nonsense"], "line 1: not JSON"),
        ({"measure": "length"}, [], "the file is empty"),
        ({"measure": "kl"}, [{"prompt": "a", "response": ""}], "line 1: `response` is no text, or empty"),
        ({"measure": "multiple_choice"}, [{"prompt": "a"}], "line 1: `choices` is no list of texts"),
        ({"measure": "multiple_choice"}, [{**CHOICES, "answer": 2}], "nor the index of one (0 to 1)"),
        ({"measure": "multiple_choice"}, [{**CHOICES, "answer": True}], "neither a choice nor the index"),
        ({"measure": "multiple_choice"}, [{**CHOICES, "answer": "c"}], "`answer` 'c' is none of the choices"),
        ({"measure": "multiple_choice"}, [{"prompt": "p", "choices": ["a"], "answer": 0}], "1 choices"),
        ({"measure": "multiple_choice"}, [{"prompt": "p", "choices": ["a", "a"], "answer": 0}], "stands twice"),
        ({"measure": "length", "where": {"x": 2}}, [{"prompt": "a", "x": 1}], "no line is {'x': 2}"),
        (
            {"measure": "length", "raw": True},
            [{"messages": [{"role": "user", "content": "x"}]}],
            "--raw takes a `prompt`",
        ),
        ({"measure": "length"}, [{"prompt": "the hen is red. " * 200}], "and the model takes 256"),
        ({"measure": "nll"}, [{"prompt": "a", "response": "red " * 400}], "and the model takes 256"),
    ],
)
def test_data_that_does_not_fit(opened: Open, sft: Any, measure: dict[str, Any], lines: list[Any], words: str) -> None:
    with pytest.raises(MeasureError) as caught:
        opened({"it": measure}, lines, sft=lambda: nullcontext(sft), room=256)
    said = str(caught.value)
    assert words in said
    assert "data.jsonl" in said
    assert "measures.yaml:1 (measures.it)" in said
    assert "--max-bad" not in said


def test_every_fault_at_once(opened: Open) -> None:
    measures = {"a": {"measure": "nll"}, "b": {"measure": "kl"}, "c": {"measure": "reward"}, "d": {"measure": "length"}}
    with pytest.raises(MeasureError) as caught:
        opened(measures, [{"prompt": "a"}])
    assert [fault.where.rpartition("(")[2] for fault in caught.value.faults] == [
        "measures.a)",
        "measures.b)",
        "measures.c)",
    ]
    assert "--sft" in str(caught.value)
    assert "--reward FILE.py:function" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(prompt):\n    return 1.0\n", "takes other arguments: too many positional arguments"),
        ("def f(prompt, response, *, more):\n    return 1.0\n", "takes other arguments: missing a required"),
    ],
)
def test_a_reward_function_of_other_arguments(opened: Open, tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(Exception, match=words):
        opened({"r": {"measure": "reward"}}, "open", reward=f"{tmp_path / 'mine.py'}:f")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(p, r):\n    raise ValueError('no')\n", "failed on the response to line 1: ValueError: no"),
        ("def f(p, r):\n    return float('nan')\n", "gave nan for the response to line 1"),
    ],
)
def test_a_reward_that_is_none(opened: Open, sft: Any, tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    wish = {"r": {"measure": "reward", "max_new_tokens": 2}}
    task = opened(wish, "open", 2, reward=f"{tmp_path / 'mine.py'}:f")["r"]
    with pytest.raises(Exception, match=words) as caught:
        task.run(sft, silent)
    assert "the responses are kept" not in getattr(caught.value, "hint", "")


def test_a_reward_that_nobody_takes(opened: Open) -> None:
    with pytest.raises(Exception, match="no measure takes it"):
        opened({"n": {"measure": "length"}}, "open", reward=REWARD)


def test_settings_tell_measures_apart(opened: Open) -> None:
    one = opened({"a": {"measure": "length"}}, "open")["a"].measure.settings
    assert one == opened({"b": {"measure": "length"}}, "open")["b"].measure.settings
    assert one != opened({"a": {"measure": "length"}}, "open", 3)["a"].measure.settings
    assert one != opened({"a": {"measure": "length", "unit": "word"}}, "open")["a"].measure.settings
    json.dumps(dict(one))
