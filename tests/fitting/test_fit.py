"""The fit itself, on the family: as good as the best of a grid, and uniform where nothing can move."""

from __future__ import annotations

import itertools

import pytest
import torch

from amatax import api
from amatax.fitting import search
from amatax.fitting.fit import fit
from amatax.fitting.likelihood import measure
from amatax.fitting.merged_model import MergedModel, load_merged_model
from amatax.fitting.passes import Passes
from amatax.fitting.samples import Sample
from amatax.fitting.variables import Variables, choose_variables, tensor_groups
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from tests.fitting.conftest import RECIPE


@pytest.mark.parametrize("few", [6, 32])
def test_as_good_as_the_best_of_a_grid(
    few: int, samples: list[Sample], merged: tuple[Variables, MergedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every (a1, a2, a3) on the 0.2 grid with mean 0.4 against the fit on the same samples, by way of few and of all."""
    variables, model = merged
    data = samples[:16]
    monkeypatch.setattr(search, "FEW", few)
    found = fit(model, variables, data, [], 0.4, Passes(None, {}), watcher=api.Watcher())
    grid = [g for g in itertools.product(range(6), repeat=3) if sum(g) == 6]
    nlls = []
    for point in grid:
        with torch.no_grad():
            model.variables.copy_(torch.tensor(point, dtype=torch.float64) / 5)
        nlls.append(measure(model, data).mean)
    assert found.fitted.fitted <= min(nlls) + 0.002 * (max(nlls) - min(nlls))
    assert sum(found.values) == pytest.approx(1.2, abs=1e-12)
    assert found.verdict == "not tested"
    for value, interval in zip(found.values, found.intervals, strict=True):
        assert interval is None or interval.low <= value <= interval.high


def test_one_block_is_uniform(samples: list[Sample]) -> None:
    plan = make_plan(load_recipe(RECIPE))
    variables = choose_variables(plan.ratios, plan.model, 1, groups=False, free_head=False, weigh_by_layers=False)
    model = load_merged_model(plan, *tensor_groups(plan, variables), compute=torch.float32)
    found = fit(model, variables, samples[:8], samples[8:18], 0.3, Passes(None, {}), watcher=api.Watcher())
    assert found.values == [0.3]
    assert found.fitted.fitted == found.fitted.uniform
    assert found.verdict == "indistinguishable"
