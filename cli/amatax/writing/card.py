"""A short model card: what was merged, at which ratios, and how to load it. No local path, no time."""

from __future__ import annotations

import yaml

from amatax.planning.plan import Plan
from amatax.planning.ratios import mean_ratio
from amatax.recipes.schema import is_folder

DOCS = "https://arxiv.org/abs/2309.06256"


def card(plan: Plan) -> str:
    """README.md of the merged model; only real Hub ids go into base_model."""
    models = plan.recipe.models.by_role()
    hub = [ref.partition("@")[0] for ref in models.values() if not is_folder(ref)]
    front: dict[str, object] = {"library_name": "transformers", "tags": ["merge", "amatax"]}
    if hub:
        front |= {"base_model": list(dict.fromkeys(hub)), "base_model_relation": "merge"}
    loaded_by = plan.checkpoints[plan.recipe.output.config].loaded_by
    if loaded_by == "AutoModelForCausalLM":
        front["pipeline_tag"] = "text-generation"
    ratios = plan.ratios
    rows = [f"| {b.layers.start}-{b.layers.stop - 1} | {b.attention:g} | {b.mlp:g} |" for b in plan.blocks]
    named = [f"- {role}: {'a local folder' if is_folder(ref) else ref}" for role, ref in models.items()]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "# Merged model",
            "",
            f"The weights before (SFT) and after RLHF, merged block by block (`{plan.recipe.merge.method}`, [AMA]({DOCS})).",
            "",
            *named,
            "",
            "The share of the RLHF model, by block (0 is SFT, 1 is RLHF):",
            "",
            "| layers | attention | MLP |",
            "|---|---|---|",
            *rows,
            "",
            f"Mean over the blocks {mean_ratio(ratios):g}; head `{ratios.head}`, embeddings `{ratios.embeddings}`, "
            f"norms `{ratios.norms}`, other `{ratios.other}`.",
            *(
                f"\nOver that: {o.ratio:g} for `{o.match or '*'}`{f' in layers {o.layers}' if o.layers is not None else ''}."
                for o in ratios.overrides
            ),
            "",
            "```python",
            f"from transformers import {loaded_by}, AutoTokenizer",
            "",
            f'model = {loaded_by}.from_pretrained("FOLDER_OR_HUB_ID")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")',
            "```",
            "",
            "`amatax merge amatax_recipe.yaml` makes the same weights again; `amatax_record.json` has a checksum of every tensor.",
            "",
        ]
    )
