"""Is the fit the optimum? Every (a1, a2, a3) of the 0.1 grid at mean 0.2, 0.4 and 0.6, merged into a folder and measured there.

The folders are written in float32 by `amatax merge` and measured by transformers alone, response by response; the fit's own
numbers have no part in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ROOT / "merge_recipes" / "family"
ALPHAS = (0.2, 0.4, 0.6)


def main() -> None:
    """Sample, fit, look at the whole grid, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "brute_force")
    parser.add_argument("--prompts", type=int, default=48)
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(parents=True, exist_ok=True)
    from amatax import api
    from amatax.fitting.libraries import import_libraries

    import_libraries()
    models = {"sft": str(FAMILY / "sft"), "rlhf": str(FAMILY / "rlhf")}
    prompts, data = work / "prompts.jsonl", work / "D.jsonl"
    lines = (FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[: args.prompts]
    prompts.write_text("\n".join(lines) + "\n")
    api.distill({"models": models}, prompts, data, max_new_tokens=96)
    fitted = api.fit_ratios(
        {"models": models}, work / "f.yaml", data=data, alpha=ALPHAS, blocks=3, holdout=0, overwrite=True, device="cpu"
    )
    print(f"{args.prompts} responses, float32, nothing held out, NLL in nats per response token\n")
    print("| mean | points | best of the grid | worst | the fit | fit - best, of the spread (at most 0.2 %) |")
    print("|---|---|---|---|---|---|")
    for alpha, found in zip(ALPHAS, fitted.fits, strict=True):
        grid = [g for g in itertools.product(range(11), repeat=3) if sum(g) == round(30 * alpha)]
        nlls = {g: measured(models, [i / 10 for i in g], data, work / "merged") for g in grid}
        best, worst = min(nlls, key=lambda g: nlls[g]), max(nlls, key=lambda g: nlls[g])
        own = measured(models, found.fit.values, data, work / "merged")
        assert abs(own - found.fit.fitted.fitted) < 1e-5, "the fit's own number is another one"
        spread = (own - nlls[best]) / (nlls[worst] - nlls[best])
        at = ", ".join(f"{v:.3f}" for v in found.fit.values)
        print(
            f"| {alpha} | {len(grid)} | {nlls[best]:.5f} at {point(best)} | {nlls[worst]:.5f} at {point(worst)} "
            f"| {own:.5f} at ({at}) | {spread:+.2%} |",
            flush=True,
        )


def measured(models: dict[str, str], ratios: list[float], data: Path, folder: Path) -> float:
    """Merge, load with transformers, and sum -log p over each response and its end of turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from amatax import api

    shutil.rmtree(folder, ignore_errors=True)
    recipe: dict[str, Any] = {"models": models, "merge": {"ratios": ratios}, "output": {"dtype": "float32"}}
    api.merge(recipe, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    total, count = 0.0, 0
    for line in data.read_text().splitlines():
        row = json.loads(line)
        turn = [{"role": "user", "content": row["prompt"]}]
        asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
        answer = tokenizer(row["response"], add_special_tokens=False).input_ids
        answer = answer if row.get("finish") == "length" else [*answer, end]
        with torch.inference_mode():
            logs = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        total -= float(logs.gather(1, torch.tensor(answer)[:, None]).double().sum())
        count += len(answer)
    return total / count


def point(tenths: tuple[int, ...]) -> str:
    """(0.9, 0, 0.3)."""
    return f"({', '.join(f'{i / 10:g}' for i in tenths)})"


if __name__ == "__main__":
    main()
