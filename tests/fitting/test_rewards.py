"""Rewards by a function and by a model: the numbers, and what is said when there are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amatax import api
from amatax.errors import AmataxError, CheckpointError, DataError
from amatax.fitting.records import Record
from amatax.fitting.rewards import function_scorer
from amatax.recipes.gallery import find_recipe
from tests.conftest import run_amatax
from tests.fitting.family import FAMILY, read_jsonl, write_prompts
from tests.fitting.server import running_server

RECIPE = find_recipe("quickstart")
Write = Callable[..., Path]
Distill = Callable[..., Any]


@pytest.fixture
def some_prompts(tmp_path: Path) -> Write:
    return partial(write_prompts, tmp_path)


@pytest.fixture
def distill(tmp_path: Path) -> Any:
    """Answers come from a server, of known text; rewards are what is looked at."""
    with running_server() as server:
        server.answer = lambda body: "the hen is red" if body["seed"] % 2 else "the owl goes with honey and it is kind"

        def run(prompts: Path, output: str = "D.jsonl", **options: Any) -> Any:
            run.server = server
            return api.distill(RECIPE, prompts, tmp_path / output, server=server.url, **options)

        yield run


def program(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_function_gets_the_last_user_turn(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    turns += [{"role": "user", "content": "last"}, {"role": "tool", "content": "tool"}]
    file = program(tmp_path, "def both(prompt, response):\n    return len(prompt) + len(response) / 100\n")
    distill(some_prompts(1, {"messages": turns}), reward=f"{file}:both")
    for record, asked in zip(read_jsonl(tmp_path / "D.jsonl"), (None, "last"), strict=True):
        asked = asked or record["prompt"]
        assert record["reward"] == len(asked) + len(record["response"]) / 100


@pytest.mark.parametrize(
    ("spec", "text", "message", "hint"),
    [
        ("mine.py", "", "not FILE.py:function", "reward.py:reward"),
        ("absent.py:f", "", "absent.py: no such file", "check the path"),
        (".:f", "", "a folder, not a file", "check the path"),
        ("mine.py:f", "def g(a, b): ...\nfrom math import sqrt\n", "no function 'f'", "it has g"),
        ("mine.py:f", "f = 3\n", "no function 'f'", "it has no functions"),
        ("mine.py:f", "import nothing_of_that_name\n", "cannot be run: ModuleNotFoundError", "traceback"),
        ("mine.py:f", "def f(:\n", "cannot be run: SyntaxError", "traceback"),
        ("mine.py:f", "raise SystemExit(0)\n", "cannot be run: SystemExit", "traceback"),
        ("notes.txt:f", "def f(a, b): ...\n", "not a Python file", "ends in .py"),
    ],
)
def test_functions_that_are_not_there(
    distill: Distill, some_prompts: Write, tmp_path: Path, spec: str, text: str, message: str, hint: str
) -> None:
    """Found before anything is sampled."""
    if text:
        program(tmp_path, text, spec.partition(":")[0])
    with pytest.raises(DataError) as caught:
        distill(some_prompts(1), reward=str(tmp_path / spec))
    assert message in caught.value.message and hint in caught.value.hint
    assert distill.server.requests == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}[prompt]", "failed on the response to line 2: KeyError"),
        ("exit()", "failed on the response to line 2: SystemExit"),
        ("return None", "gave None for the response to line 2"),
        ("return float('nan')", "gave nan for the response to line 2"),
        ("return float('inf')", "gave inf for the response to line 2"),
        ("return '0.5'", "gave '0.5' for the response to line 2"),
    ],
)
def test_a_function_that_fails_loses_no_response(
    distill: Distill, some_prompts: Write, tmp_path: Path, body: str, message: str
) -> None:
    file = program(tmp_path, f"def f(prompt, response):\n    if prompt == 'odd':\n        {body}\n    return 1\n")
    prompts = some_prompts(1, {"prompt": "odd"}, {"prompt": "after"})
    with pytest.raises(DataError) as caught:
        distill(prompts, reward=f"{file}:f")
    assert message in caught.value.message
    assert "the responses are kept" in caught.value.hint
    program(tmp_path, "def f(prompt, response):\n    return 2\n")
    assert distill(prompts, reward=f"{file}:f").kept == 3
    assert {record["reward"] for record in read_jsonl(tmp_path / "D.jsonl")} == {2.0}
    assert len(distill.server.requests) == 3


def test_another_version_of_a_function_scores_anew(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts, file = some_prompts(2), program(tmp_path, "def f(prompt, response):\n    return 1\n")
    distill(prompts, reward=f"{file}:f")
    program(tmp_path, "def f(prompt, response):\n    return 5\n")
    with pytest.raises(AmataxError, match="selected otherwise"):
        distill(prompts, reward=f"{file}:f")
    result = distill(prompts, reward=f"{file}:f", overwrite=True)
    assert result.summary.rewards.mean == 5


def save_reward_model(
    folder: Path, *, kind: str = "Llama", labels: int = 1, pad: int | None = 0, template: bool = True
) -> Path:
    """Two layers of Llama (or Bert) with a head for rewards, and the family's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        architectures=[f"{kind}ForSequenceClassification"],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=928,
        num_labels=labels,
        pad_token_id=pad,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", *(["chat_template.jinja"] if template else [])):
        shutil.copy(FAMILY / "sft" / name, folder / name)
    return folder


@pytest.mark.parametrize(("kind", "pad"), [("Llama", 0), ("Llama", None), ("Bert", 0)])
def test_a_models_rewards_are_those_of_one_conversation_at_a_time(
    distill: Distill, some_prompts: Write, tmp_path: Path, kind: str, pad: int | None
) -> None:
    """Padding and batches move nothing: with a pad token and without one, for decoders and encoders."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save_reward_model(tmp_path / "rm", kind=kind, pad=pad)
    turns = [{"role": role, "content": "What goes with the hen?"} for role in ("user", "assistant", "user")]
    result = distill(some_prompts(4, {"messages": turns}), n=2, reward_model=str(folder), batch_size=4, device="cpu")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    written = read_jsonl(tmp_path / "D.jsonl")
    for record in written:
        messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
        ids = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": record["response"]}],
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            wanted = float(model(**ids).logits[0, 0])
        assert record["reward"] == pytest.approx(wanted, abs=1e-5)
    assert len(written) == 10 and len({record["reward"] for record in written}) > 5
    assert result.summary.rewards.max == max(record["reward"] for record in written)


def test_conversations_longer_than_the_model_are_said(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm")
    result = distill(some_prompts(1, {"prompt": "hen " * 100}), reward_model=str(folder), device="cpu")
    assert any("1 conversations are longer than the reward model's 64 positions" in note for note in result.notes)


def test_reward_models_that_are_none(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """Several labels, no template, no folder, no tokenizer, a model without the head: before anything is sampled."""
    prompts = some_prompts(1)
    cases = [
        (save_reward_model(tmp_path / "two", labels=2), "2 labels, and a reward is one number"),
        (save_reward_model(tmp_path / "bare", template=False), "no chat template"),
        (FAMILY / "rlhf", "2 labels"),  # transformers' default for what is no classifier
        (tmp_path / "absent", "no such folder"),
    ]
    for folder, message in cases:
        with pytest.raises(CheckpointError, match=message):
            distill(prompts, reward_model=str(folder), device="cpu")
    headless = tmp_path / "headless"
    shutil.copytree(FAMILY / "rlhf", headless)
    config = json.loads((headless / "config.json").read_text())
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (headless / "config.json").write_text(json.dumps({**config, **labels}))
    assert distill.server.requests == []
    with pytest.raises(CheckpointError, match=r"1 weights are missing, first 'score\.weight'"):
        distill(prompts, reward_model=str(headless), device="cpu")


def test_a_template_that_refuses_the_conversation(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm")
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    with pytest.raises(DataError, match="line 2: the reward model's chat template refuses"):
        distill(some_prompts(1, {"messages": turns}), reward_model=str(folder), device="cpu")


def test_by_the_command_line(some_prompts: Write, tmp_path: Path) -> None:
    """The model that answers and the model that scores, one after the other."""
    folder = save_reward_model(tmp_path / "rm")
    command = ["distill", RECIPE, "--prompts", some_prompts(3), "-o", "D.jsonl", "--reward-model", folder, "--top", 2]
    done = run_amatax(*command, "--max-new-tokens", 9, "--device", "cpu", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "scoring 3 responses" in done.err
    assert "reward, selected" in done.out
    scores = sorted(line["reward"] for line in read_jsonl(tmp_path / "D.jsonl.samples.jsonl") if "reward" in line)
    assert sorted(record["reward"] for record in read_jsonl(tmp_path / "D.jsonl")) == scores[1:]


def test_what_a_function_prints_is_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loud.py"
    file.write_text("print('loaded')\ndef reward(prompt, response):\n    print('DEBUG')\n    return 1.0\n")
    scorer = function_scorer(f"{file}:reward")
    record = Record(1, {"prompt": "a"})
    assert list(scorer.score([(0, record, "b")])) == [{0: 1.0}]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "loaded\nDEBUG\n"
