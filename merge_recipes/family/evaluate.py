"""Measure checkpoints of the small model family: abilities (exact match, greedy) and reward on held-out prompts.

    python merge_recipes/family/evaluate.py [MODEL_FOLDER ...] [--curve] [--json FILE]

Without folders: base, sft and rlhf beside this file. `--curve` adds the uniform averages (1-a)*sft + a*rlhf,
a = 0, .1, ..., 1, merged in memory in float32 and rounded to bf16. Weights are bf16, arithmetic is float32.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from generation import answer, load
from reward import reward
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging
from world import ABILITIES, Row

FAMILY = Path(__file__).resolve().parent

Measures = dict[str, dict[str, float]]  # facts, ..., abilities (their average), reward -> {mean, error}

ABILITY_TOKENS = 16  # no reference answer is as long: a longer answer is wrong anyway
OPEN_TOKENS = 96
MEASURES = (*ABILITIES, "abilities", "reward")


def read_rows(file: Path, limit: int | None = None) -> list[Row]:
    """The rows of a JSONL file; with `limit`, that many spread evenly over it."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return rows[:: max(1, len(rows) // limit)][:limit] if limit else rows


def mean_and_error(scores: list[float]) -> dict[str, float]:
    """The mean and its standard error."""
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return {"mean": round(statistics.fmean(scores), 4), "error": round(error, 4)}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, abilities: list[Row], opened: list[Row]
) -> Measures:
    """Exact match per ability, their average, and the reward on open prompts."""
    answers = answer(model, tokenizer, [row["prompt"] for row in abilities], ABILITY_TOKENS)
    measures: Measures = {}
    for ability in ABILITIES:
        scores = [
            float(given.strip() == row["response"])
            for given, row in zip(answers, abilities, strict=True)
            if row["ability"] == ability
        ]
        measures[ability] = mean_and_error(scores)
    measures["abilities"] = {
        "mean": round(statistics.fmean(measures[ability]["mean"] for ability in ABILITIES), 4),
        "error": round(math.hypot(*(measures[ability]["error"] for ability in ABILITIES)) / len(ABILITIES), 4),
    }
    prompts = [row["prompt"] for row in opened]
    answers = answer(model, tokenizer, prompts, OPEN_TOKENS)
    measures["reward"] = mean_and_error([reward(p, given) for p, given in zip(prompts, answers, strict=True)])
    return measures


def average_(target: PreTrainedModel, sft: PreTrainedModel, rlhf: PreTrainedModel, ratio: float) -> None:
    """Set `target` to the uniform average, rounded to bf16."""
    rlhf_weights, sft_weights = rlhf.state_dict(), sft.state_dict()
    for name, weight in target.state_dict().items():
        merged = (1 - ratio) * sft_weights[name].float() + ratio * rlhf_weights[name].float()
        weight.copy_(merged.to(torch.bfloat16))


def show(name: str, measures: Measures) -> None:
    """Print one row of the table."""
    cells = (f"{measures[key]['mean']:.3f} ±{measures[key]['error']:.3f}" for key in MEASURES)
    print(f"{name:12s} " + "  ".join(f"{cell:13s}" for cell in cells), flush=True)


def main() -> None:
    """Measure the folders, then the curve if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("--family", type=Path, default=FAMILY, help="the folder with base/, sft/, rlhf/ and data/")
    parser.add_argument("--curve", action="store_true", help="also measure the uniform averages from sft to rlhf")
    parser.add_argument("--limit", type=int, help="measure on this many prompts of each set only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    logging.disable_progress_bar()
    folders = arguments.folders or [arguments.family / name for name in ("base", "sft", "rlhf")]
    data = arguments.family / "data"
    sets = read_rows(data / "abilities.jsonl", arguments.limit), read_rows(data / "open.jsonl", arguments.limit)

    figures: dict[str, dict[str, Measures]] = {"models": {}}
    print(f"{'':12s} " + "  ".join(f"{key:13s}" for key in MEASURES))
    for folder in folders:
        figures["models"][folder.name] = measure(*load(folder), *sets)
        show(folder.name, figures["models"][folder.name])
    if arguments.curve:
        figures["uniform"] = {}
        sft, tokenizer = load(arguments.family / "sft")
        rlhf, _ = load(arguments.family / "rlhf")
        merged, _ = load(arguments.family / "sft")
        for tenth in range(11):
            average_(merged, sft, rlhf, tenth / 10)
            figures["uniform"][f"{tenth / 10:.1f}"] = measure(merged, tokenizer, *sets)
            show(f"a = {tenth / 10:.1f}", figures["uniform"][f"{tenth / 10:.1f}"])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
