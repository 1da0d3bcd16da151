"""The unknowns of a fit: the feasible set by construction, and how tensors follow them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amatax.fitting.optimum import feasible
from amatax.fitting.variables import choose_variables, exact_mean, tensor_groups
from amatax.planning.plan import make_plan
from amatax.planning.ratios import mean_ratio
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import Ratios

alphas = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.6, 0.95, 1.0])
points = st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=12)


@given(point=points, alpha=alphas)
def test_the_written_ratios_have_exactly_the_mean(point: list[float], alpha: float) -> None:
    shares = [Fraction(1, len(point))] * len(point)
    near = feasible(point, [float(s) for s in shares], alpha)
    assert all(0 <= v <= 1 for v in near)
    values = exact_mean(near, shares, alpha)
    assert all(0 <= v <= 1 for v in values)
    assert mean_ratio(Ratios(blocks=values)) == alpha
    assert max(abs(a - b) for a, b in zip(values, near, strict=True)) < 1e-6 * (len(point) + 1)


@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=6), alpha=alphas, head=st.floats(0, 1))
def test_weighted_means_and_a_free_head(weights: list[int], alpha: float, head: float) -> None:
    shares = [*(Fraction(w, sum(weights)) for w in weights), Fraction(0)]
    values = exact_mean(feasible([0.3] * len(weights) + [head], [float(s) for s in shares], alpha), shares, alpha)
    assert sum(float(s) * v for s, v in zip(shares, values, strict=True)) == pytest.approx(alpha, abs=1e-12)
    assert values[-1] == pytest.approx(head, abs=1e-6)


def test_tensors_follow_the_unknowns(siblings: Path) -> None:
    recipe = load_recipe(siblings / "recipe.yaml")
    plan = make_plan(recipe)
    words = plan.ratios.model_copy(update={"embeddings": 0.25})
    variables = choose_variables(words, plan.model, 2, groups=True, free_head=True, weigh_by_layers=False)
    assert variables.names == ["block 0 attention", "block 0 mlp", "block 1 attention", "block 1 mlp", "head"]
    assert variables.shares == [Fraction(1, 4)] * 4 + [0]
    groups, rows = tensor_groups(plan, variables)
    row = {name: rows[group] for name, group in groups.items()}
    assert row["model.layers.0.self_attn.q_proj.weight"] == (0, 1, 0, 0, 0, 0)
    assert row["model.layers.5.mlp.up_proj.weight"] == (0, 0, 0, 0, 1, 0)
    assert row["model.layers.0.input_layernorm.weight"] == (0, 0.5, 0.5, 0, 0, 0)
    assert row["model.norm.weight"] == (0, 0.25, 0.25, 0.25, 0.25, 0)
    assert row["model.embed_tokens.weight"] == (0.25, 0, 0, 0, 0, 0)
    assert row["lm_head.weight"] == (0, 0, 0, 0, 0, 1)

    weighed = choose_variables(words, plan.model, 4, groups=False, free_head=False, weigh_by_layers=True)
    assert weighed.shares == [Fraction(n, 6) for n in (1, 2, 1, 2)]
