"""The model card: what was merged, at which ratios, how they were found, and how to load it. No local path, no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from amatax.methods import summary
from amatax.planning.ratios import PlannedBlock, mean_ratio
from amatax.recipes.schema import Ratios, Recipe, is_folder
from amatax.writing.chosen import chosen_section, keeps_fit

AMA = "https://arxiv.org/abs/2309.06256"
BAR = 20  # characters of a whole bar
VERDICTS = {
    "better": "are better than uniform ones",
    "worse": "are worse than uniform ones",
    "indistinguishable": "cannot be told from uniform ones",
}


def card(
    recipe: Recipe,
    ratios: Ratios,
    blocks: Sequence[PlannedBlock],
    loaded_by: str,
    *,
    name: str = "FOLDER_OR_HUB_ID",
    picture: str = "",
    front: Mapping[str, object] | None = None,
    sections: Sequence[str] = (),
) -> str:
    """README.md of the merged model; only real Hub ids go into base_model.

    Args:
        recipe: with Hub models pinned to commits.
        ratios: its ratios in their long form.
        blocks: the blocks with their layers.
        loaded_by: the class in transformers that loads it.
        name: how the model is called in `from_pretrained`.
        picture: of the ratios, a file beside the card.
        front: what else the front matter says: licence, languages, datasets, results.
        sections: what else the text says.
    """
    models = recipe.models.references()
    hub = [ref.partition("@")[0] for ref in models.values() if not is_folder(ref)]
    head: dict[str, object] = {"library_name": "transformers", "tags": ["merge", "amatax"]}
    if hub:
        head |= {"base_model": list(dict.fromkeys(hub)), "base_model_relation": "merge"}
    if loaded_by == "AutoModelForCausalLM":
        head["pipeline_tag"] = "text-generation"
    head |= front or {}
    title = name.rpartition("/")[2] if front is not None else "Merged model"
    chosen = chosen_section(recipe.record.get("sweep"), mean_ratio(ratios))
    parts = [
        f"# {title}",
        f"The weights before (SFT) and after RLHF, merged block by block (`{recipe.merge.method}`, [AMA]({AMA})) with amatax.",
        *_method(recipe),
        _models(models),
        *_ratios(ratios, blocks),
        *([f"![share of the RLHF model by layer]({picture})"] if picture else []),
        *([] if chosen and not keeps_fit(recipe.record["sweep"]) else _fit(recipe.record.get("fit"))),
        *chosen,
        *sections,
        f"""```python
from transformers import {loaded_by}, AutoTokenizer

model = {loaded_by}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```""",
        "`amatax merge amatax_recipe.yaml OUTPUT` makes the same weights again; `amatax_record.json` has a checksum of every tensor.",
    ]
    front_matter = yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()
    return f"---\n{front_matter}\n---\n" + "\n\n".join(parts) + "\n"


def _method(recipe: Recipe) -> list[str]:
    """What a method other than averaging does, and its options."""
    if recipe.merge.method == "average":
        return []
    options = ", ".join(f"{name} {json.dumps(value)}" for name, value in recipe.merge.options.items())
    return [f"{summary(recipe.merge.method)}" + (f" Options: {options}." if options else "")]


def _models(models: Mapping[str, str]) -> str:
    """Which models, at which commits."""
    lines = []
    for role, ref in models.items():
        repo, _, commit = ref.partition("@")
        linked = f"[{repo}](https://huggingface.co/{repo}) at `{commit}`" if commit else f"`{repo}`"
        lines.append(f"- {role}: {'a local folder' if is_folder(ref) else linked}")
    return "\n".join(lines)


def _ratios(ratios: Ratios, blocks: Sequence[PlannedBlock]) -> list[str]:
    """The ratios of the blocks as a table with bars, and those outside them in words."""
    rows = []
    for block in blocks:
        layers = f"{block.layers.start}-{block.layers.stop - 1}"
        parts = [("", block.attention)]
        if block.attention != block.mlp:
            parts = [(" attention", block.attention), (" MLP", block.mlp)]
        rows += [f"| {layers}{part} | {ratio:g} | `{_bar(ratio)}` |" for part, ratio in parts]
    found = [
        "The share of the RLHF model, by block (0 is SFT, 1 is RLHF):",
        "\n".join(["| layers | share of RLHF | |", "|---|---|---|", *rows]),
        f"Mean over the blocks {mean_ratio(ratios):g}; head `{ratios.head}`, embeddings `{ratios.embeddings}`, "
        f"norms `{ratios.norms}`, other `{ratios.other}`.",
    ]
    for o in ratios.overrides:
        layers = f" in layers {o.layers}" if o.layers is not None else ""
        found.append(f"Over that: {o.ratio:g} for `{o.match or '*'}`{layers}.")
    return found


def _bar(ratio: float) -> str:
    full = round(max(0.0, min(1.0, ratio)) * BAR)
    return "█" * full + "·" * (BAR - full)


def _fit(record: Any) -> list[str]:
    """How the ratios were found, if they were fitted, and what was measured."""
    if not isinstance(record, dict):
        return []
    data = record.get("data", {})
    found = [
        "## How the ratios were found",
        f"By {record.get('method', 'maximum likelihood')}: mean ratio {record.get('alpha')}, "
        f"{data.get('fitted')} responses of the RLHF model fitted and {data.get('held_out')} held out, seed {record.get('seed')}.",
    ]
    rows = []
    for part, measured in record.get("nll", {}).items():
        gain = measured.get("gain")
        told = f"{gain[0]:+.4f} ({gain[1]:+.4f} to {gain[2]:+.4f})" if gain else ""
        rows.append(f"| {part.replace('_', ' ')} | {measured['uniform']:.4f} | {measured['fitted']:.4f} | {told} |")
    head = ["| nats per response token | uniform | fitted | fitted - uniform (95 %) |", "|---|---|---|---|"]
    if rows:
        found.append("\n".join([*head, *rows]))
    if record.get("verdict") in VERDICTS:
        found.append(
            f"On what was held out the fitted ratios {VERDICTS[record['verdict']]} (paired bootstrap over prompts)."
        )
    return found
