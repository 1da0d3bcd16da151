"""The family's models in one, and responses of its RLHF model, sampled once for all tests."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from amatax import api
from amatax.fitting.merged_model import MergedModel, load_merged_model
from amatax.fitting.records import read_records
from amatax.fitting.samples import Sample, tokenize
from amatax.fitting.variables import Variables, choose_variables, tensor_groups
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from tests.fitting.distilling import RECIPE as QUICKSTART
from tests.fitting.distilling import Distill, Write
from tests.fitting.family import write_prompts

FAMILY = Path(__file__).resolve().parents[2] / "merge_recipes" / "family"
RECIPE = FAMILY.parent / "quickstart.yaml"


@pytest.fixture(scope="session")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts with a sampled response each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(FAMILY / "rlhf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "rlhf")
    lines = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[:24]
    prompts = [json.loads(line)["prompt"] for line in lines]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for p in prompts
    ]
    batch = tokenizer.pad({"input_ids": chats}, padding_side="left", return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=16, do_sample=True, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    path = tmp_path_factory.mktemp("distilled") / "D.jsonl"
    rows = [{"prompt": p, "response": t} for p, t in zip(prompts, texts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer() -> object:
    """The family's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FAMILY / "sft")


@pytest.fixture(scope="module")
def samples(distilled: Path, tokenizer: object) -> list[Sample]:
    """The responses, tokenized."""
    records, _ = read_records(distilled, responses=True)
    return tokenize(records, tokenizer, raw=False)[0]


@pytest.fixture(scope="module")
def merged() -> tuple[Variables, MergedModel]:
    """SFT and RLHF in one, with three blocks."""
    plan = make_plan(load_recipe(RECIPE))
    variables = choose_variables(plan.ratios, plan.model, 3, groups=False, free_head=False, weigh_by_layers=False)
    groups, rows = tensor_groups(plan, variables)
    return variables, load_merged_model(plan, groups, rows, compute=torch.float32)


@pytest.fixture
def some_prompts(tmp_path: Path) -> Write:
    return partial(write_prompts, tmp_path)


@pytest.fixture
def distill(tmp_path: Path) -> Distill:
    """api.distill of the quickstart into the test's folder, with short answers."""

    def run(prompts: Path, output: str = "D.jsonl", recipe: Any = QUICKSTART, **options: Any) -> Any:
        return api.distill(recipe, prompts, tmp_path / output, **{"max_new_tokens": 12, "device": "cpu", **options})

    return run
