"""What is run: sweeps of the small family by every way of merging, each with its recipe and its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ROOT / "merge_recipes" / "family"
SEEDS = (0, 1, 2)  # of the distilled responses and their held-out part, or of the masks
RATIOS = (0.2, 0.4, 0.6)  # of every way, so that areas are of as many points
UNIFORM = tuple(i / 10 for i in range(1, 10))
DENSITIES = (0.2, 0.5, 0.8)
PLAIN, TAX_AWARE = (3, 6, 9), (3,)  # blocks
PROMPTS = 120  # that RLHF answers for a seed's fits
ANSWER = 96  # tokens at most
KEPT = 100  # lines of keep.jsonl for tax-aware fits; kl and nll are measured on the others


@dataclass(frozen=True)
class Sweep:
    """One run of `amatax sweep`.

    Attributes:
        name: of its folder.
        merge: of the recipe, but for the ratios.
        options: of the command.
        seed: of the masks, or of the distilled responses; None where nothing is drawn.
        data: whether it fits, and so needs that seed's responses.
        label: what its averages are called, where the method is not `average`.
    """

    name: str
    merge: dict[str, Any]
    options: tuple[str, ...]
    seed: int | None = None
    data: bool = False
    label: str = ""


def sweeps(seeds: Sequence[int] = SEEDS) -> list[Sweep]:
    """All of them: the one that measures both models first, then seed by seed."""
    ratios = ("--alpha", _list(RATIOS))
    found = [FIRST, Sweep("uniform", {}, ("--alpha", _list(UNIFORM))), Sweep("parts", {}, (*ratios, "--with", "parts"))]
    for density in DENSITIES:
        label = f"ties {density:g}"
        found.append(Sweep(f"ties-{density:g}", {"method": "ties", "density": density}, ratios, label=label))
    for seed in seeds:
        for way, count in (*(("fitted", k) for k in PLAIN), *(("tax-aware", k) for k in TAX_AWARE)):
            options = (*ratios, "--with", way, "--blocks", str(count), "--seed", str(seed))
            found.append(Sweep(f"{way}-{count}-{seed}", {}, options, seed, True))
        for density in DENSITIES:
            merge = {"method": "dare", "density": density, "seed": seed}
            found.append(Sweep(f"dare-{density:g}-{seed}", merge, ratios, seed, label=f"dare {density:g}"))
    return found


def recipe(sweep: Sweep) -> dict[str, Any]:
    """As a recipe's YAML says it."""
    roles = ("base", "sft", "rlhf") if sweep.merge.get("method") in ("ties", "dare") else ("sft", "rlhf")
    return {"models": {role: str(FAMILY / role) for role in roles}, "merge": {**sweep.merge, "ratios": 0.5}}


def measures(kept_apart: Path) -> dict[str, Any]:
    """The family's five (merge_recipes/evaluate.yaml), kl and nll on what no fit has seen."""
    asked = {"data": str(FAMILY / "data" / "open.jsonl"), "max_new_tokens": ANSWER}
    abilities = {"measure": "exact_match", "data": str(FAMILY / "data" / "abilities.jsonl"), "max_new_tokens": 16}
    return {
        "abilities": abilities,
        "reward": {"measure": "reward", **asked},
        "length": {"measure": "length", **asked},
        "kl": {"measure": "kl", "data": str(kept_apart)},
        "nll": {"measure": "nll", "data": str(kept_apart)},
    }


def _list(ratios: tuple[float, ...]) -> str:
    return ",".join(f"{ratio:g}" for ratio in ratios)


FIRST = Sweep("models", {}, ("--alpha", "0,1"))  # uniform averages at these ends are the models themselves
