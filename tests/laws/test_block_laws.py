"""Blocks cover every layer once; sizes differ by at most one; parse(dump(recipe)) = recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amatax.planning.ratios import even_split, mean_ratio
from amatax.recipes.loading import dump_recipe, parse_recipe
from amatax.recipes.schema import Ratios


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_even_split(sizes) -> None:
    layers, blocks = sizes
    spans = even_split(layers, blocks)
    assert [layer for span in spans for layer in span] == list(range(layers))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_the_paper_s_split() -> None:
    assert [len(span) for span in even_split(26, 3)] == [8, 9, 9]


@pytest.mark.parametrize(
    ("blocks", "mean"),
    [
        ([0.7, 0.4, 0.1], 0.4),
        ([0.1, 0.2], 0.15),
        ([{"layers": "0-1", "attention": 0.2, "mlp": 0.4}, {"layers": "2-3", "ratio": 0.9}], 0.5),
    ],
)
def test_mean(blocks, mean) -> None:
    assert mean_ratio(Ratios.model_validate({"blocks": blocks})) == mean


ratio = st.floats(0, 1)
kind = st.one_of(st.just("mean"), ratio)
block = st.one_of(
    st.fixed_dictionaries({"layers": st.sampled_from(["0-3", "4", 5]), "ratio": ratio}),
    st.fixed_dictionaries({"layers": st.just("0-3"), "attention": ratio, "mlp": ratio}),
)
override = st.fixed_dictionaries(
    {"match": st.sampled_from(["*.mlp.*", "*"]), "ratio": ratio}, optional={"layers": st.just("0-2")}
)
ratios = st.one_of(
    ratio,
    st.lists(ratio, min_size=1, max_size=5),
    st.lists(block, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {"blocks": st.lists(ratio, min_size=1, max_size=4)},
        optional={
            "head": kind,
            "norms": st.one_of(kind, st.just("block")),
            "overrides": st.lists(override, max_size=2),
        },
    ),
)
recipes = st.fixed_dictionaries(
    {
        "models": st.fixed_dictionaries(
            {"sft": st.just("acme/sft@v2"), "rlhf": st.sampled_from(["/a b/c", "acme/rlhf"])}
        ),
        "merge": st.fixed_dictionaries(
            {"ratios": ratios}, optional={"extrapolate": st.booleans(), "untie": st.booleans()}
        ),
    },
    optional={
        "output": st.fixed_dictionaries(
            {}, optional={"dtype": st.just("float32"), "max_shard_size": st.sampled_from(["2GB", 77])}
        ),
        "fit": st.fixed_dictionaries({"alpha": ratio, "blocks": st.integers(1, 9)}),
        "record": st.dictionaries(
            st.text(min_size=1), st.one_of(st.integers(), st.text(), st.floats(allow_nan=False)), max_size=3
        ),
    },
)


@given(recipes)
def test_parse_of_dump(data) -> None:
    import yaml

    recipe = parse_recipe(yaml.safe_dump(data), "r.yaml", Path("/"))
    assert parse_recipe(dump_recipe(recipe), "again.yaml", Path("/")) == recipe
