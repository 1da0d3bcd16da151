"""The chosen recipe: its numbers are the point's, its comments the user's, and it merges to the point's ratios."""

from __future__ import annotations

from pathlib import Path

import pytest

from amatax.errors import DataError
from amatax.evaluation.chosen import recipe_ratios, write_chosen
from amatax.evaluation.results import Point
from amatax.recipes.loading import parse_recipe
from amatax.recipes.schema import Block, Ratios

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
RECORD = {"chosen": "grid 1", "figures": {"chosen": {"reward": [0.7, 0.01]}}, "requirements": []}


def test_everything_else_stays(tmp_path: Path) -> None:
    point = Point("grid 1", "grid", 0.45, {"blocks.0": 0.7, "blocks.1": 0.2, "head": 0.45, "embeddings": 0.0})
    source, target = tmp_path / "r.yaml", tmp_path / "out" / "chosen.yaml"
    target.parent.mkdir()
    text = write_chosen(TEXT, point, RECORD, source, target)
    found = parse_recipe(text, "chosen.yaml", target.parent)
    assert found.merge.resolved_ratios() == Ratios(blocks=[0.7, 0.2], embeddings=0)
    assert found.record == {"fit": {"alpha": 0.4}, "sweep": RECORD}
    assert found.models == parse_recipe(TEXT, "r.yaml", tmp_path).models
    for comment in ("# my merge", "# before", "# after", "# even", "# as in the paper", "# stays"):
        assert comment in text


def test_parts_say_every_group(tmp_path: Path) -> None:
    """The paper's Section 4: one part at a ratio, everything else RLHF."""
    ratios = {
        "blocks.0": 0.3,
        "blocks.1": 1.0,
        "blocks.2": 1.0,
        "head": 1.0,
        "embeddings": 1.0,
        "norms": 1.0,
        "other": 1.0,
    }
    point = Point("parts input 0.3", "parts", 0.77, ratios)
    for written in (TEXT, "models: {sft: ./a, rlhf: ./b}\nmerge:\n  ratios: 0.4  # uniform\n"):
        text = write_chosen(written, point, {}, tmp_path / "r.yaml", tmp_path / "c.yaml")
        found = parse_recipe(text, "c.yaml", tmp_path).merge.resolved_ratios()
        assert found == Ratios(blocks=[0.3, 1, 1], head=1, embeddings=1, norms=1, other=1)
        assert text.count("#") == written.count("#")


def test_words_that_say_the_same_stay() -> None:
    uniform = {"blocks.0": 0.3, "blocks.1": 0.3, "head": 0.3, "norms": 0.3}
    assert recipe_ratios(Point("u", "uniform", 0.3, uniform), None) == Ratios(blocks=[0.3, 0.3])
    other = {"blocks.0": 0.2, "blocks.1": 0.4, "head": 0.3, "norms": 0.3, "embeddings": 0.5}
    assert recipe_ratios(Point("o", "grid", 0.3, other), None) == Ratios(blocks=[0.2, 0.4], norms=0.3, embeddings=0.5)


def test_attention_and_mlp() -> None:
    point = Point("p", "fitted-2", 0.5, {"blocks.0.attention": 0.1, "blocks.0.mlp": 0.3, "blocks.1": 0.9})
    wanted = [Block(layers="0-1", attention=0.1, mlp=0.3), Block(layers="2-4", ratio=0.9)]
    assert recipe_ratios(point, None, layers=5).blocks == wanted
    written = Ratios(blocks=[Block(layers="0-3", ratio=0.5), Block(layers="4-4", ratio=0.5)])
    assert [b.layers for b in recipe_ratios(point, written).blocks if isinstance(b, Block)] == ["0-3", "4-4"]
    with pytest.raises(DataError, match="layers of its blocks are not known"):
        recipe_ratios(point, None)


@pytest.mark.parametrize("ratios", [{"tower": 0.5, "blocks.0": 1.0}, {}, {"blocks.1": 0.5}, {"head": 0.5}])
def test_ratios_that_no_recipe_can_say(ratios: dict[str, float]) -> None:
    with pytest.raises(DataError):
        recipe_ratios(Point("p", "grid", 0.5, ratios), None)
