"""amatax distill on the small family: what is sampled, selected and written; interrupted, repeated and refused."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from amatax import api
from amatax.errors import AmataxError, CheckpointError, DataError, OutputError
from amatax.recipes.gallery import find_recipe
from tests.conftest import Run, save_siblings, tiny_llama
from tests.fitting.family import FAMILY, REWARD, read_jsonl, write_prompts
from tests.forked import FITTING, Job, forks
from tests.test_boundaries import heavy_imports

RECIPE = find_recipe("quickstart")
Write = Callable[..., Path]


@pytest.fixture
def some_prompts(tmp_path: Path) -> Write:
    return partial(write_prompts, tmp_path)


@pytest.fixture
def distill(tmp_path: Path) -> Callable[..., api.DistillResult]:
    """api.distill of the quickstart into the test's folder, with short answers."""

    def run(prompts: Path, output: str = "D.jsonl", recipe: Any = RECIPE, **options: Any) -> Any:
        return api.distill(recipe, prompts, tmp_path / output, **{"max_new_tokens": 12, "device": "cpu", **options})

    return run


Distill = Callable[..., Any]


def test_by_the_command_line(amatax: Callable[..., Run], some_prompts: Write, tmp_path: Path) -> None:
    """As the README has it: sampled, scored, selected, summed up; then recognised, without torch."""
    command = ["distill", "quickstart", "--prompts", some_prompts(6), "-o", "D.jsonl", "--n", 2, "--reward", REWARD]
    command += ["--top", 8, "--draw", 5, "--max-new-tokens", 150, "--device", "cpu"]
    done = amatax(*command)
    assert done.code == 0, done.err
    assert "distilled into D.jsonl (12 responses" in done.out
    written = read_jsonl(tmp_path / "D.jsonl")
    assert len(written) == 5
    for record in written:
        assert list(record) == ["prompt", "thing", "response", "reward", "finish"]
        assert record["response"] and record["finish"] == "stop"

    samples = [line for line in read_jsonl(tmp_path / "D.jsonl.samples.jsonl") if "response" in line]
    assert [sample["item"] for sample in samples] == list(range(12))
    assert len({sample["response"] for sample in samples}) == 12  # two answers to one prompt are two draws
    assert not list(tmp_path.glob("*unfinished*"))

    again = amatax(*command, "--json").json
    assert again["already_finished"] is True
    assert (again["prompts"], again["responses"], again["selected"], again["kept"]) == (6, 12, 5, 12)
    assert (again["truncated"], again["empty"], again["duplicates"]) == (0, 0, 0)
    lengths = sorted(sample["tokens"] for sample in samples)
    assert again["tokens"]["max"] == lengths[-1]
    assert again["tokens"]["median"] == (lengths[5] + lengths[6]) / 2
    assert again["selected_rewards"]["mean"] == pytest.approx(sum(r["reward"] for r in written) / 5)
    assert again["selected_rewards"]["mean"] > again["rewards"]["mean"]
    assert heavy_imports({"torch", "transformers"}, [str(part) for part in command], tmp_path) == []


def test_the_samples_are_the_models_own(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """At temperature 0: what transformers' own greedy search answers, one prompt at a time, without padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FAMILY / "rlhf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "rlhf")
    folder = in_float32(tmp_path)
    distill(some_prompts(4, {"prompt": "hen " * 100}), recipe=folder, temperature=0, batch_size=5)
    for record in read_jsonl(tmp_path / "D.jsonl"):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": record["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        tokens = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert record["response"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert record["finish"] == "length"


def test_the_first_token_is_drawn_from_the_models_distribution(
    distill: Distill, some_prompts: Write, tmp_path: Path
) -> None:
    """600 draws of one token, against the probabilities: chi-square, and none that top-p leaves out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = in_float32(tmp_path)
    prompts = some_prompts(1)
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "rlhf")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": read_jsonl(prompts)[0]["prompt"]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "rlhf")
    with torch.inference_mode():
        wanted = (model(**ids).logits[0, -1].double() / 1.5).softmax(-1)
    result = distill(prompts, recipe=folder, n=600, max_new_tokens=1, temperature=1.5, batch_size=200)
    assert result.summary.tokens.max == 1
    counts: dict[str, int] = {}
    for line in read_jsonl(tmp_path / "D.jsonl.samples.jsonl"):
        if "response" in line:
            counts[line["response"]] = counts.get(line["response"], 0) + 1
    likely = [token for token in wanted.argsort(descending=True).tolist() if wanted[token] * 600 >= 5]
    assert len(likely) >= 3
    statistic = 0.0
    for token in likely:
        expected = 600 * float(wanted[token])
        statistic += (counts.get(tokenizer.decode([token]), 0) - expected) ** 2 / expected
    assert statistic < len(likely) + 5 * (2 * len(likely)) ** 0.5, counts

    share = float(wanted.max()) * 0.99
    distill(prompts, "top.jsonl", recipe=folder, n=20, max_new_tokens=1, temperature=1.5, top_p=share)
    best = tokenizer.decode([int(wanted.argmax())])
    assert {record["response"] for record in read_jsonl(tmp_path / "top.jsonl")} == {best}


def in_float32(folder: Path) -> Path:
    """The family's RLHF model in float32 in `folder`, with a recipe: rounding is far from every draw."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(FAMILY / "rlhf", folder / "rlhf")
    weights = folder / "rlhf" / "model.safetensors"
    save_file({k: v.to(torch.float32) for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((folder / "rlhf" / "config.json").read_text())
    (folder / "rlhf" / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"models": {"sft": str(FAMILY / "sft"), "rlhf": "./rlhf"}}))
    return recipe


def test_a_sample_hangs_neither_on_its_batch_nor_on_habits_of_the_checkpoint(
    distill: Distill, some_prompts: Write, tmp_path: Path
) -> None:
    recipe, prompts = in_float32(tmp_path), some_prompts(4, {"prompt": "hen " * 100})  # much padding
    distill(prompts, "whole.jsonl", recipe=recipe, batch_size=5)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    distill(prompts, "one.jsonl", recipe=recipe, batch_size=2)
    assert (tmp_path / "one.jsonl").read_bytes() == whole
    distill(prompts, "seeded.jsonl", recipe=recipe, seed=1)
    assert (tmp_path / "seeded.jsonl").read_bytes() != whole
    habits = {"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "eos_token_id": 1}
    (tmp_path / "rlhf" / "generation_config.json").write_text(json.dumps(habits))
    distill(prompts, "habits.jsonl", recipe=recipe)
    assert (tmp_path / "habits.jsonl").read_bytes() == whole


def test_the_templates_end_of_turn_ends_an_answer_though_no_config_says_so(
    distill: Distill, some_prompts: Write, tmp_path: Path
) -> None:
    recipe, prompts = in_float32(tmp_path), some_prompts(2)
    distill(prompts, "known.jsonl", recipe=recipe, max_new_tokens=100)
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        data = json.loads((tmp_path / "rlhf" / name).read_text())
        data.pop("eos_token", None)
        (tmp_path / "rlhf" / name).write_text(json.dumps({k: v for k, v in data.items() if k != "eos_token_id"}))
    recipe.write_text(recipe.read_text() + "output: {tokenizer: rlhf}\n")
    distill(prompts, "unknown.jsonl", recipe=recipe, max_new_tokens=100)
    assert {record["finish"] for record in read_jsonl(tmp_path / "known.jsonl")} == {"stop"}
    assert (tmp_path / "unknown.jsonl").read_bytes() == (tmp_path / "known.jsonl").read_bytes()


def test_killed_and_continued_is_as_uninterrupted(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; the end is the same, byte for byte, and what was there was not sampled again."""
    prompts = some_prompts(16)
    distill(prompts, "whole.jsonl", max_new_tokens=24, batch_size=2, reward=REWARD, top=14, draw=9)
    command = ["distill", RECIPE, "--prompts", prompts, "-o", "D.jsonl", "--reward", REWARD, "--top", 14, "--draw", 9]
    command += ["--max-new-tokens", 24, "--batch-size", 2, "--device", "cpu"]
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    before = b""
    for at_least in (2, 6):
        job = forks(*FITTING).start(tmp_path, *map(str, command))
        try:
            until(lambda n=at_least: work.exists() and work.read_bytes().count(b"\n") > n, job)
        finally:
            job.send(signal.SIGKILL)
        assert job.wait().code == -signal.SIGKILL
        assert work.read_bytes().startswith(before)
        before = work.read_bytes()
        assert not (tmp_path / "D.jsonl").exists()
    done = before.count(b"\n") - 1
    with work.open("ab") as file:
        file.write(b'{"item": 15, "respon')  # cut off in the middle of a line
    result = distill(prompts, max_new_tokens=24, batch_size=2, reward=REWARD, top=14, draw=9)
    assert 6 <= done < 16 and result.kept == done
    assert (tmp_path / "D.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    samples = (tmp_path / "D.jsonl.samples.jsonl").read_bytes()
    assert samples == (tmp_path / "whole.jsonl.samples.jsonl").read_bytes()


def until(true: Callable[[], bool], job: Job) -> None:
    """Wait for something that a running job does."""
    end = time.monotonic() + 120
    while not true():
        assert not job.ended() and time.monotonic() < end, "the job ended before it could be killed"
        time.sleep(0.005)


def test_ctrl_c_says_that_it_continues(some_prompts: Write, tmp_path: Path) -> None:
    command = ["distill", RECIPE, "--prompts", some_prompts(40), "-o", "D.jsonl", "--batch-size", 1, "--device", "cpu"]
    job = forks(*FITTING).start(tmp_path, *map(str, command))
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    until(lambda: work.exists() and work.read_bytes().count(b"\n") > 1, job)
    job.send(signal.SIGINT)
    done = job.wait()
    assert done.code == 130
    assert "the same command continues" in done.err
    assert work.exists()


def test_another_selection_samples_nothing_again(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(5)
    all_of_them = distill(prompts)
    samples = (tmp_path / "D.jsonl.samples.jsonl").read_bytes()
    with pytest.raises(OutputError, match="selected otherwise") as caught:
        distill(prompts, reward=REWARD, top=2)
    assert "from the same samples" in caught.value.hint
    assert (tmp_path / "D.jsonl.samples.jsonl").read_bytes() == samples
    result = distill(prompts, reward=REWARD, top=2, overwrite=True)
    assert (all_of_them.kept, result.kept, result.summary.selected) == (0, 5, 2)
    assert (tmp_path / "D.jsonl.samples.jsonl").read_bytes().startswith(samples)
    rewards = sorted(line["reward"] for line in read_jsonl(tmp_path / "D.jsonl.samples.jsonl") if "reward" in line)
    assert sorted(record["reward"] for record in read_jsonl(tmp_path / "D.jsonl")) == rewards[-2:]


def test_larger_selections_than_there_is_are_said(distill: Distill, some_prompts: Write) -> None:
    result = distill(some_prompts(3), reward=REWARD, top=5000, draw=2000)
    assert result.summary.selected == 3
    assert "--top 5000 keeps all: 3 responses are not empty" in result.notes
    assert "--draw 2000 takes all: there are 3 to draw from" in result.notes
    assert any("100% of the responses were cut off" in note for note in result.notes)


def test_conversations_lose_their_old_answer(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Talk to me about the hen."}, {"role": "assistant", "content": "old"}]
    result = distill(some_prompts(0, {"messages": turns, "reward": 3, "id": 7}))
    assert "1 of 1 records end with an answer, which is left out and sampled anew" in result.notes
    (record,) = read_jsonl(tmp_path / "D.jsonl")
    assert record["messages"] == turns[:1]
    assert record["id"] == 7 and record["response"] != "old" and "reward" not in record


def test_empty_responses_are_left_out_and_duplicates_counted(
    distill: Distill, some_prompts: Write, tmp_path: Path
) -> None:
    """Whoever has said all ends the turn at once; the same prompt twice, at temperature 0, is answered alike."""
    asked = {"prompt": "<|user|>Talk to me about the hen.<|end|><|assistant|>"}
    distill(some_prompts(0, asked), "said.jsonl", raw=True, temperature=0, max_new_tokens=150)
    (said,) = read_jsonl(tmp_path / "said.jsonl")
    all_said = {"prompt": asked["prompt"] + said["response"]}
    result = distill(some_prompts(0, asked, all_said, asked), raw=True, temperature=0, reward=REWARD)
    summary = result.summary
    assert (summary.responses, summary.empty, summary.duplicates, summary.selected) == (3, 1, 1, 2)
    assert [record["prompt"] for record in read_jsonl(tmp_path / "D.jsonl")] == [asked["prompt"]] * 2
    with pytest.raises(DataError, match="all 1 responses are empty"):
        distill(some_prompts(0, all_said), "none.jsonl", raw=True, temperature=0)
    assert not (tmp_path / "none.jsonl").exists()


def test_another_model_of_the_recipe(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(3)
    distill(prompts, temperature=0)
    distill(prompts, "sft.jsonl", temperature=0, role="sft")
    rlhf, sft = (read_jsonl(tmp_path / name) for name in ("D.jsonl", "sft.jsonl"))
    assert [record["response"] for record in rlhf] != [record["response"] for record in sft]


def test_a_token_more_is_no_fault(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    recipe = in_float32(tmp_path)
    file = tmp_path / "rlhf" / "tokenizer.json"
    text = json.loads(file.read_text())
    text["added_tokens"].append({**text["added_tokens"][0], "id": 928, "content": "<|more|>"})
    file.write_text(json.dumps(text))
    assert distill(some_prompts(1), recipe=recipe).summary.selected == 1


def test_bad_lines(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(3, {"prompt": ""})
    with pytest.raises(DataError, match="1 of 4 lines cannot be used"):
        distill(prompts)
    assert not list(tmp_path.glob("D.jsonl*"))
    result = distill(prompts, most_bad=0.3)
    assert result.summary.prompts == 3
    assert any("1 of 4 lines are skipped: line 4: the prompt is empty" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "--temperature -1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": 0, "n": 3}, "3 times the same response"),
        ({"top_p": 0}, "--top-p 0"),
        ({"top_p": 1.1}, "--top-p 1.1"),
        ({"n": 0}, "at least 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"top": 3}, "there is no reward"),
        ({"draw": -1}, "--draw -1"),
        ({"reward": REWARD, "reward_model": "x"}, "two rewards"),
        ({"role": "base"}, "--role base: the recipe names no such model"),
        ({"server_model": "x"}, "--server-model without --server"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_options_that_cannot_be(
    distill: Distill, some_prompts: Write, tmp_path: Path, options: Any, message: str
) -> None:
    prompts = some_prompts(1)
    with pytest.raises(AmataxError) as caught:
        distill(prompts, **options)
    assert message in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.glob("D.jsonl*"))


def test_outputs_that_are_taken(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    with pytest.raises(OutputError, match="a folder"):
        distill(prompts, ".")
    with pytest.raises(OutputError, match="the prompts themselves"):
        distill(prompts, "prompts.jsonl")
    (tmp_path / "D.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match="there already"):
        distill(prompts)
    assert (tmp_path / "D.jsonl").read_text() == "mine\n"
    assert not list(tmp_path.glob("D.jsonl.*"))
    distill(prompts, overwrite=True)
    with pytest.raises(
        OutputError, match=r"made by another run \(differs in max_new_tokens 12 -> 13, seed 0 -> 5\)"
    ) as caught:
        distill(prompts, seed=5, max_new_tokens=13)
    assert "--overwrite" in caught.value.hint
    (tmp_path / "D.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match="changed since it was distilled"):
        distill(prompts)


def test_unfinished_work_of_another_run(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    distill(prompts)
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    (tmp_path / "D.jsonl.samples.jsonl").rename(work)
    (tmp_path / "D.jsonl").unlink()
    kept = work.read_bytes()
    with pytest.raises(OutputError, match=r"unfinished work of another run \(differs in seed 0 -> 1\)"):
        distill(prompts, seed=1)
    assert work.read_bytes() == kept
    assert distill(prompts, seed=1, overwrite=True).kept == 0

    work.write_text("somebody's notes\n")
    (tmp_path / "D.jsonl").unlink()
    with pytest.raises(OutputError, match="holds something else"):
        distill(prompts, seed=1)
    assert work.read_text() == "somebody's notes\n"


def test_killed_between_the_two_last_names(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    distill(prompts)
    work, samples = tmp_path / "D.jsonl.unfinished.jsonl", tmp_path / "D.jsonl.samples.jsonl"
    samples.rename(work)
    assert distill(prompts).already
    assert samples.exists() and not work.exists()


def test_two_runs_at_a_time(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    with work.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is distilling"):
            distill(some_prompts(1))
        assert work.exists()


def test_a_changed_model_is_another_run(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    recipe, prompts = in_float32(tmp_path), some_prompts(1)
    distill(prompts, recipe=recipe)
    os.utime(tmp_path / "rlhf" / "model.safetensors")
    with pytest.raises(OutputError, match=r"differs in model\.files"):
        distill(prompts, recipe=recipe)


def test_models_that_cannot_answer(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    """No tokenizer; another vocabulary; no template; a checkpoint of NaN; no room: one clear error each, and nothing left."""
    prompts = some_prompts(1)
    save_siblings(tmp_path, tiny_llama())
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("models: {sft: ./sft, rlhf: ./rlhf}\n")
    with pytest.raises(CheckpointError, match="no tokenizer that transformers loads"):
        distill(prompts, recipe=recipe)
    for role in ("sft", "rlhf"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(FAMILY / role / name, tmp_path / role / name)
    with pytest.raises(DataError, match="beyond the model's 160 embeddings"):
        distill(prompts, recipe=recipe)
    text = json.loads((tmp_path / "rlhf" / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "rlhf" / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"the tokenizers of .* differ: 2 of 928 tokens"):
        distill(prompts, recipe=recipe)
    for role in ("sft", "rlhf"):
        (tmp_path / role / "chat_template.jinja").unlink()
        shutil.copy(FAMILY / role / "tokenizer.json", tmp_path / role / "tokenizer.json")
    with pytest.raises(DataError, match="no chat template"):
        distill(prompts, recipe=recipe)
    assert not list(tmp_path.glob("D.jsonl*"))


def test_no_room_and_not_a_number(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    recipe = in_float32(tmp_path)
    with pytest.raises(DataError, match=r"line 2: the prompt has .* and the model 256 positions"):
        distill(some_prompts(1, {"prompt": "hen " * 300}), recipe=recipe)
    result = distill(some_prompts(1, {"prompt": "hen " * 240}), recipe=recipe, max_new_tokens=100, batch_size=1)
    assert result.summary.tokens.max <= 100
    weights = tmp_path / "rlhf" / "model.safetensors"
    save_file({k: torch.full_like(v, torch.nan) for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(AmataxError, match="logits are not finite"):
        distill(some_prompts(1), "nan.jsonl", recipe=recipe)
    assert not list(tmp_path.glob("nan.jsonl*"))


def test_out_of_memory_names_the_batch_size() -> None:
    import torch

    from amatax.fitting.memory import memory_hint, sampling_hint

    cpu = torch.device("cpu")
    with (
        pytest.raises(AmataxError, match="out of memory on cpu with 16 samples") as caught,
        memory_hint(*sampling_hint(16, cpu)),
    ):
        torch.empty(1 << 60, dtype=torch.int8)  # an exbibyte: the allocator's own words
    assert "--batch-size 8" in caught.value.hint
    with pytest.raises(RuntimeError, match="something else"), memory_hint("", ""):
        raise RuntimeError("something else")
