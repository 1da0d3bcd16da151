"""The chosen recipe: its numbers are the point's, its comments the user's, and it merges to the point's ratios."""

from __future__ import annotations

from pathlib import Path

import pytest

from amatax.evaluation.outcome import RECORD
from amatax.evaluation.points import numbers, wanted_points
from amatax.fitting.filling import fill_in
from amatax.recipes.loading import parse_recipe
from amatax.recipes.schema import Override, Ratios, Recipe

TEXT = """# my merge
models:
  sft: ./a   # before
  rlhf: ./b  # after
merge:
  ratios:
    blocks: [0.5, 0.5]  # even
    embeddings: 0  # as in the paper
    head: mean  # stays
fit: {alpha: 0.4, data: d.jsonl}
record: {fit: {alpha: 0.4}}
"""
TOLD = {"chosen": "grid 1", "figures": {"chosen": {"reward": [0.7, 0.01]}}, "requirements": []}


def chosen(text: str, ratios: Ratios, tmp_path: Path) -> tuple[str, Recipe]:
    """What a sweep writes of a merge that it has chosen, as text and as read again."""
    source, target = tmp_path / "r.yaml", tmp_path / "out" / "chosen.yaml"
    target.parent.mkdir(exist_ok=True)
    written = fill_in(text, parse_recipe(text, "r.yaml", tmp_path), ratios, TOLD, source, target, RECORD)
    return written, parse_recipe(written, "chosen.yaml", target.parent)


def test_everything_else_stays(tmp_path: Path) -> None:
    text, found = chosen(TEXT, Ratios(blocks=[0.7, 0.2], embeddings=0), tmp_path)
    assert found.merge.resolved_ratios() == Ratios(blocks=[0.7, 0.2], embeddings=0)
    assert found.record == {"fit": {"alpha": 0.4}, "sweep": TOLD}
    assert found.models == parse_recipe(TEXT, "r.yaml", tmp_path).models
    for comment in ("# my merge", "# before", "# after", "# even", "# as in the paper", "# stays"):
        assert comment in text


SPANS = """models: {sft: ./a, rlhf: ./b}
merge:
  ratios:
    blocks: [{layers: 0-0, ratio: 0.1}, {layers: 1-1, ratio: 0.2}, {layers: 2-8, ratio: 0.3}]
    overrides: [{match: "*.layers.0.*", ratio: 0.0}]
"""


@pytest.mark.parametrize("text", [TEXT, SPANS, "models: {sft: ./a, rlhf: ./b}\nmerge:\n  ratios: 0.4  # uniform\n"])
def test_it_is_the_merge_that_was_measured(tmp_path: Path, text: str) -> None:
    """Other blocks, parts that leave the overrides out, and words of the recipe's own."""
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    ways = ["uniform", "parts"]
    points = wanted_points(recipe, numbers("0.3", "--alpha"), ways, blocks=[3], grid=numbers("0,1", "--grid"))
    for point in points[2:]:
        assert point.recipe is not None
        ratios = point.recipe.merge.resolved_ratios()
        assert ratios is not None
        assert chosen(text, ratios, tmp_path)[1].merge.resolved_ratios() == ratios, point.name
    if text is SPANS:
        kept = points[-1].recipe
        assert kept is not None
        words = kept.merge.resolved_ratios()
        assert words is not None
        assert words.overrides == [Override(match="*.layers.0.*", ratio=0.0)]
