"""The paper's claim on the small family: fitted ratios against uniform averaging at the same mean, in reward and in abilities.

For each seed the RLHF model answers prompts anew; K = 3 and 9 blocks are fitted to that at one mean, plainly and tax-aware
(`--keep` with the family's keep.jsonl, weight 1), merged and measured as the family's table is. A run that was cut off
continues.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ROOT / "merge_recipes" / "family"
PROMPTS = 200
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile of Student's t for so many seeds
FITS: dict[str, dict[str, Any]] = {
    "plain, K = 3": {"blocks": 3},
    "plain, K = 9": {"blocks": 9},
    "tax-aware, K = 3": {"blocks": 3, "keep": FAMILY / "data" / "keep.jsonl", "keep_weight": 1.0},
    "tax-aware, K = 9": {"blocks": 9, "keep": FAMILY / "data" / "keep.jsonl", "keep_weight": 1.0},
}


def main() -> None:
    """Fit, merge, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "claim")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.4)
    args = parser.parse_args()
    work = args.folder.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(FAMILY))
    from amatax import api
    from amatax.fitting.libraries import import_libraries

    import_libraries()
    models = {"sft": str(FAMILY / "sft"), "rlhf": str(FAMILY / "rlhf")}
    prompts = work / "prompts.jsonl"
    prompts.write_text("\n".join((FAMILY / "data" / "rlhf_prompts.jsonl").read_text().splitlines()[:PROMPTS]) + "\n")
    found: dict[str, list[dict[str, float]]] = {}
    for name in ("sft", "rlhf"):
        found[name] = [measured(FAMILY / name, work / f"{name}.json")]
    uniform = work / f"uniform-{args.alpha}"
    api.merge({"models": models, "merge": {"ratios": args.alpha}}, uniform)
    found["uniform"] = [measured(uniform, work / f"{uniform.name}.json")]
    for seed in range(args.seeds):
        data = work / f"D-{seed}.jsonl"
        api.distill({"models": models}, prompts, data, seed=seed, max_new_tokens=96)
        for name, wishes in FITS.items():
            stem = f"{name.replace(', K = ', '-')}-{args.alpha}-{seed}"
            recipe = work / f"{stem}.yaml"
            api.fit_ratios({"models": models}, recipe, data=data, alpha=args.alpha, **wishes)
            api.merge(recipe, work / stem)
            found.setdefault(name, []).append(measured(work / stem, work / f"{stem}.json"))
            print(stem, json.loads((work / f"{stem}.json").read_text()), flush=True)
    report(found)


def measured(folder: Path, cache: Path) -> dict[str, float]:
    """{"reward", "abilities"} of a model folder, on the family's held-out prompts."""
    if not cache.exists():
        from evaluate import measure, read_rows
        from generation import load

        sets = read_rows(FAMILY / "data" / "abilities.jsonl"), read_rows(FAMILY / "data" / "open.jsonl")
        whole = measure(*load(folder), *sets)
        cache.write_text(json.dumps({key: whole[key]["mean"] for key in ("reward", "abilities")}))
    return dict(json.loads(cache.read_text()))


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Means over the seeds with 95 % intervals, and the difference from uniform."""
    print("\n| | reward | abilities | reward - uniform | abilities - uniform |\n|---|---|---|---|---|")
    base = found["uniform"][0]
    for name, runs in found.items():
        cells = []
        for minus in (0, 1):
            for key in ("reward", "abilities"):
                values = [run[key] - minus * base[key] for run in runs]
                reach = (
                    STUDENT[len(runs)] * statistics.stdev(values) / math.sqrt(len(runs)) if len(runs) in STUDENT else 0
                )
                text = f"{statistics.fmean(values):{'+' if minus else ''}.3f}"
                cells.append(f"{text} ± {reach:.3f}" if reach else text)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
