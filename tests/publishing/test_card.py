"""The model card: what it says of the recipe, and that it is the same every time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from amatax.planning.ratios import plan_blocks
from amatax.publishing.picture import draw_ratios
from amatax.publishing.staging import without_paths
from amatax.recipes.loading import load_recipe
from amatax.writing.card import card

ODD = "a|b`c_d*[x]\n<script>"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPE: dict[str, Any] = {
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


def swept() -> dict[str, Any]:
    """What a sweep leaves in a recipe, of a measure with an odd name."""
    return {
        "chosen": "grid 0.7,0.3",
        "alpha": 0.5,
        "requirements": [
            {
                "asked": f"{ODD} >= 0.98*sft",
                "value": 0.84,
                "margin": [0.01, -0.02, 0.03],
                "verdict": "holds, but not for sure",
            }
        ],
        "rule": "the largest share of RLHF's gain (reward)",
        "merges": {"measured": 12, "holding": 3},
        "figures": {
            "sft": {ODD: [0.85, 0.018], "reward": [0.157, 0.009]},
            "rlhf": {ODD: [0.6, 0.025], "reward": [0.834, 0.015]},
            "chosen": {ODD: [0.84, 0.02], "reward": [0.61, 0.03]},
        },
        "compared": [
            {"measure": ODD, "with": "sft", "difference": [-0.01, -0.03, 0.01], "verdict": "indistinguishable"},
            {"measure": "reward", "with": "sft", "difference": [0.45, 0.4, 0.5], "verdict": "better"},
            {"measure": "reward", "with": "rlhf", "difference": [-0.22, -0.3, -0.2], "verdict": "worse"},
        ],
        "measures": {ODD: {"kind": "exact_match", "higher": True}, "reward": {"kind": "reward", "higher": True}},
    }


def with_record(**record: Any) -> str:
    recipe = load_recipe({**RECIPE, "merge": {"ratios": [0.7, 0.3]}, "record": {**RECIPE["record"], **record}})
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    return card(recipe, ratios, plan_blocks(recipe, ratios, 9)[0], "AutoModelForCausalLM")


def test_the_figures_of_a_sweeps_choice() -> None:
    text = with_record(sweep=swept())
    shown = r"a\|b\`c\_d\*\[x\] &lt;script>"
    for said in (
        "Chosen by a sweep (grid 0.7,0.3) among 3 of 12 merges that hold what was asked, by the largest share of RLHF's gain (reward).",
        "| | this merge | SFT | RLHF |\n|---|---|---|---|\n",
        rf"| {shown}, exact\_match ↑ | 0.84 ± 0.02 | 0.85 ± 0.018 | 0.6 ± 0.025 |",
        "| reward ↑ | 0.61 ± 0.03 | 0.157 ± 0.009 | 0.834 ± 0.015 |",
        rf"- {shown} >= 0.98\*sft holds, but not for sure: 0.84, asked was 0.83.",
        f"- Beside SFT: indistinguishable in {shown}; better in reward.\n- Beside RLHF: worse in reward.",
    ):
        assert said in text, said
    assert "<script>" not in text
    assert "How the ratios were found" not in text  # an earlier fit's ratios are not those that were chosen
    assert "How the ratios were found" in with_record(sweep={**swept(), "chosen": "recipe"})
    assert text == with_record(sweep=swept())


@pytest.mark.parametrize("cut", list(swept()))
def test_a_record_that_is_none_of_a_sweeps_says_nothing(cut: str) -> None:
    """Whoever edits the ratios or the record gets a card without figures, not with wrong ones, and no error after a merge."""
    for record in (
        {**swept(), cut: 7.5},
        {k: v for k, v in swept().items() if k != cut},
        {**swept(), "alpha": 0.4},
        [1],
        "x",
    ):
        if not (
            isinstance(record, dict) and cut in ("chosen", "rule") and record.get("alpha") == 0.5 and cut in record
        ):
            text = with_record(sweep=record)
            assert "at what price" not in text
            assert "How the ratios were found" in text


@pytest.mark.parametrize(
    ("figure", "cell"), [((math.nan, math.nan), "–"), ((0.5, math.nan), "0.5"), ((math.nan, 0.1), "–")]
)
def test_a_figure_that_is_no_number(figure: tuple[float, float], cell: str) -> None:
    record = swept()
    record["figures"]["sft"]["reward"] = figure
    assert f"| reward ↑ | 0.61 ± 0.03 | {cell} | 0.834 ± 0.015 |" in with_record(sweep=record)
