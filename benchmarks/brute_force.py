"""Is the fit the optimum? Every (a1, a2, a3) of the 0.1 grid at mean 0.2, 0.4 and 0.6, merged into a folder and measured there;
the tax-aware fits against NLL + KL on the grid at 0.4, and against every point of the 0.2 grid that keeps to a bound.

The folders are written in float32 by `amatax merge` and measured by transformers alone, response by response; the fit's own
numbers have no part in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ROOT / "merge_recipes" / "family"
ALPHAS = (0.2, 0.4, 0.6)
WEIGHT, BOUND = 1.0, 0.05  # of the divergence


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
    wishes: dict[str, Any] = {"data": data, "blocks": 3, "holdout": 0, "overwrite": True, "device": "cpu"}
    look = Look(models, data, work / "merged")
    print(f"{args.prompts} responses, float32, nothing held out, nats per response token\n")
    print(
        "| minimised | points | lowest of the grid | highest | the fit | fit - lowest, of the spread (at most 0.2 %) |"
    )
    print("|---|---|---|---|---|---|")
    for alpha, found in zip(
        ALPHAS, api.fit_ratios({"models": models}, work / "f.yaml", alpha=ALPHAS, **wishes).fits, strict=True
    ):
        own = look.nll(found.fit.values)
        assert abs(own - found.fit.fitted.fitted) < 1e-5, "the fit's own number is another one"
        report(f"NLL, mean {alpha}", {g: look.nll(tenths(g)) for g in at_mean(alpha)}, found.fit.values, own)

    kept = work / "K.jsonl"
    kept.write_text(
        "".join(f"{line}\n" for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[: args.prompts])
    )
    wishes["keep"] = look.kept = kept
    (found,) = api.fit_ratios({"models": models}, work / "w.yaml", alpha=0.4, keep_weight=WEIGHT, **wishes).fits
    both = {g: look.nll(tenths(g)) + WEIGHT * look.kl(tenths(g)) for g in at_mean(0.4)}
    own = look.nll(found.fit.values) + WEIGHT * look.kl(found.fit.values)
    report(f"NLL + {WEIGHT:g} KL, mean 0.4", both, found.fit.values, own)
    (found,) = api.fit_ratios({"models": models}, work / "b.yaml", max_kl=BOUND, **wishes).fits
    assert look.kl(found.fit.values) <= BOUND * 1.001, "the bound is not kept"
    every = itertools.product(range(0, 11, 2), repeat=3)
    within = {g: look.nll(tenths(g)) for g in every if look.kl(tenths(g)) <= BOUND}
    report(f"NLL, KL at most {BOUND:g}", within, found.fit.values, look.nll(found.fit.values))


def report(name: str, grid: dict[tuple[int, ...], float], values: list[float], own: float) -> None:
    """A row: the fit beside the grid's lowest and highest."""
    low, high = min(grid, key=lambda g: grid[g]), max(grid, key=lambda g: grid[g])
    at = ", ".join(f"{v:.3f}" for v in values)
    print(
        f"| {name} | {len(grid)} | {grid[low]:.5f} at {point(low)} | {grid[high]:.5f} at {point(high)} "
        f"| {own:.5f} at ({at}) | {(own - grid[low]) / (grid[high] - grid[low]):+.2%} |",
        flush=True,
    )


class Look:
    """Merges, loads with transformers, and measures response by response."""

    def __init__(self, models: dict[str, str], data: Path, folder: Path) -> None:
        self.models, self.data, self.kept, self.folder = models, data, data, folder
        self._at: tuple[float, ...] = ()
        self._model: Any = None
        self._sft = load(models["sft"])

    def nll(self, ratios: Sequence[float]) -> float:
        """-log p of each response and its end of turn."""
        total, count = 0.0, 0
        for answer, logs in self._logs(self._merged(ratios), self.data):
            total -= float(logs.gather(1, answer[:, None]).double().sum())
            count += len(answer)
        return total / count

    def kl(self, ratios: Sequence[float]) -> float:
        """KL(SFT || merged) with teacher forcing on the kept responses."""
        total, count = 0.0, 0
        sft = self._logs(self._sft, self.kept)
        for (answer, before), (_, after) in zip(sft, self._logs(self._merged(ratios), self.kept), strict=True):
            total += float((before.exp() * (before - after)).double().sum())
            count += len(answer)
        return total / count

    def _merged(self, ratios: Sequence[float]) -> Any:
        from amatax import api

        if tuple(ratios) != self._at:
            shutil.rmtree(self.folder, ignore_errors=True)
            recipe = {"models": self.models, "merge": {"ratios": list(ratios)}, "output": {"dtype": "float32"}}
            api.merge(recipe, self.folder)
            self._at, self._model = tuple(ratios), load(str(self.folder))
        return self._model

    def _logs(self, model: Any, path: Path) -> Iterator[tuple[Any, Any]]:
        """Of each line: its response's tokens, and log p of every word at each of them."""
        import torch
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.models["sft"])
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        for line in path.read_text().splitlines():
            row = json.loads(line)
            turn = [{"role": "user", "content": row["prompt"]}]
            asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
            answer = tokenizer(row["response"], add_special_tokens=False).input_ids
            answer = answer if row.get("finish") == "length" else [*answer, end]
            with torch.inference_mode():
                logs = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            yield torch.tensor(answer), logs


def load(folder: str) -> Any:
    """By transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def at_mean(alpha: float) -> list[tuple[int, ...]]:
    """The points of the 0.1 grid with that mean, in tenths."""
    return [g for g in itertools.product(range(11), repeat=3) if sum(g) == round(30 * alpha)]


def tenths(point: tuple[int, ...]) -> list[float]:
    """(9, 0, 3) -> [0.9, 0, 0.3]."""
    return [i / 10 for i in point]


def point(of: tuple[int, ...]) -> str:
    """(0.9, 0, 0.3)."""
    return f"({', '.join(f'{i:g}' for i in tenths(of))})"


if __name__ == "__main__":
    main()
