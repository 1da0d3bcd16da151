"""amatax distill on the small family: what is sampled, selected and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amatax.errors import DataError, OutputError
from tests.conftest import Run
from tests.fitting.distilling import Distill, Write, in_float32
from tests.fitting.family import FAMILY, REWARD, read_jsonl
from tests.test_boundaries import heavy_imports


def test_by_the_command_line(amatax: Callable[..., Run], some_prompts: Write, tmp_path: Path) -> None:
    """As the README has it: sampled, scored, selected, summed up; then recognised, without torch."""
    command = ["distill", "quickstart", "--prompts", some_prompts(6), "-o", "D.jsonl", "--n", 2, "--reward", REWARD]
    command += ["--top", 8, "--draw", 5, "--max-new-tokens", 150, "--device", "cpu"]
    done = amatax(*command)
    assert done.code == 0, done.err
    assert "distilled into D.jsonl (12 responses" in done.out
    samples = [line for line in read_jsonl(tmp_path / "D.jsonl.samples.jsonl") if "response" in line]
    written = read_jsonl(tmp_path / "D.jsonl")
    assert len(written) == 5
    for record in written:
        assert list(record) == ["prompt", "thing", "response", "reward", "finish"]
        assert record["response"]
        assert record["finish"] == next(s["finish"] for s in samples if s["response"] == record["response"])

    assert [sample["item"] for sample in samples] == list(range(12))
    assert len({sample["response"] for sample in samples}) == 12  # two answers to one prompt are two draws
    assert not list(tmp_path.glob("*unfinished*"))

    again = amatax(*command, "--json").json
    assert again["already_finished"] is True
    assert (again["prompts"], again["responses"], again["selected"], again["kept"]) == (6, 12, 5, 12)
    cut_off = sum(sample["finish"] == "length" for sample in samples)  # which hangs on how the processor rounds
    assert (again["truncated"], again["empty"], again["duplicates"]) == (cut_off, 0, 0)
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
