"""The model card: what it says of the recipe, and that it is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amatax.planning.ratios import plan_blocks
from amatax.publishing.picture import draw_ratios
from amatax.publishing.staging import without_paths
from amatax.recipes.loading import load_recipe
from amatax.writing.card import card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPE = {
    "models": {"sft": f"acme/sft@{COMMIT}", "rlhf": "/home/somebody/rlhf"},
    "merge": {
        "ratios": {
            "blocks": [{"layers": "0-3", "ratio": 0.7}, {"layers": "4-8", "attention": 0.2, "mlp": 0.4}],
            "embeddings": 0,
            "overrides": [{"match": "*.mlp.*", "layers": "0-1", "ratio": 0.9}],
        }
    },
    "output": {"path": "/home/somebody/out"},
    "fit": {"prompts": "/home/somebody/prompts.jsonl"},
    "record": {
        "fit": {
            "method": "maximum likelihood (AMA, arXiv 2309.06256, Eq. 8)",
            "alpha": 0.4,
            "data": {"file": "D.jsonl", "fitted": 320, "held_out": 80},
            "seed": 0,
            "nll": {"held_out": {"uniform": 0.3754, "fitted": 0.3507, "gain": [-0.0247, -0.0301, -0.0188]}},
            "verdict": "better",
        }
    },
}


def written() -> str:
    recipe = without_paths(load_recipe(RECIPE))
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    blocks, faults = plan_blocks(recipe, ratios, 9)
    assert not faults
    front = {"license": "mit", "language": ["en"], "datasets": ["acme/prompts"]}
    return card(recipe, ratios, blocks, "AutoModelForCausalLM", name="me/merged", front=front, sections=["Said last."])


def test_what_the_card_says() -> None:
    text = written()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["merge", "amatax"],
        "base_model": ["acme/sft"],
        "base_model_relation": "merge",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": ["en"],
        "datasets": ["acme/prompts"],
    }
    for said in (
        "# merged\n",
        f"[acme/sft](https://huggingface.co/acme/sft) at `{COMMIT}`",
        "rlhf: a local folder",
        "| 0-3 | 0.7 | `██████████████······` |",
        "| 4-8 attention | 0.2 | `████················` |",
        "| 4-8 MLP | 0.4 |",
        "Over that: 0.9 for `*.mlp.*` in layers 0-1.",
        "320 responses of the RLHF model fitted and 80 held out, seed 0",
        "| held out | 0.3754 | 0.3507 | -0.0247 (-0.0301 to -0.0188) |",
        "the fitted ratios are better than uniform ones",
        'from_pretrained("me/merged")',
        "Said last.",
    ):
        assert said in body
    assert "/home/somebody" not in text


def test_the_hubs_own_classes_read_it(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    found = ModelCard(written())
    assert found.data.license == "mit"
    assert found.data.base_model == ["acme/sft"]
    assert ModelCard(str(found)).data.to_dict() == found.data.to_dict()


def test_no_local_path_in_what_is_published() -> None:
    public = without_paths(load_recipe(RECIPE))
    assert "/home/" not in repr(public.model_dump())
    assert public.models.rlhf == "./rlhf"
    assert public.fit is not None
    assert public.fit.prompts == "prompts.jsonl"


@pytest.mark.parametrize(
    "blocks", [[0.7, 0.5, 0.3], [{"layers": "0-4", "attention": 0.1, "mlp": 0.9}, {"layers": "5-8", "ratio": 1}]]
)
def test_the_picture_is_the_same_every_time(tmp_path: Path, blocks: list[object]) -> None:
    recipe = load_recipe({"models": {"sft": "a/b", "rlhf": "a/c"}, "merge": {"ratios": blocks}})
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    planned, _ = plan_blocks(recipe, ratios, 9)
    for name in ("one.png", "two.png"):
        draw_ratios(planned, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
