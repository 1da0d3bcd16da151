"""The small model family in the repository, and prompts for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amatax.recipes.gallery import gallery_folder

FAMILY = gallery_folder() / "family"
REWARD = f"{FAMILY / 'reward.py'}:reward"


def write_prompts(folder: Path, count: int, *more: Any) -> Path:
    """The family's first prompts, and further records, in a file of the test's."""
    lines = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[:count]
    path = folder / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in (*lines, *map(json.dumps, more))))
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def nll_of_fitted_part(folder: Path, data: Path) -> float:
    """What a model makes of the four fifths of the data that are fitted: nats per response token, one sample after another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from amatax.fitting.records import read_records
    from amatax.fitting.samples import split_off, tokenize

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    records, _ = read_records(data, responses=True)
    whole, _ = tokenize(records, AutoTokenizer.from_pretrained(folder), raw=False)
    total, count = 0.0, 0
    for sample in split_off(whole, 0.2, 0)[0]:
        with torch.no_grad():
            logs = model(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        total -= sum(float(logs[i - 1, sample.ids[i]]) for i in range(sample.start, len(sample.ids)))
        count += len(sample.ids) - sample.start
    return total / count
