"""A pass of the fit on a GPU is the pass on the CPU, to the rounding of float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import load_merged_model
from amatax.fitting.records import read_records
from amatax.fitting.samples import tokenize
from amatax.fitting.tokens import open_tokenizer
from amatax.fitting.variables import choose_variables, tensor_groups
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe

FAMILY = Path(__file__).resolve().parents[2] / "merge_recipes" / "family"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("divergence", [False, True])
def test_the_same_pass_on_both_devices(divergence: bool) -> None:
    plan = make_plan(load_recipe(FAMILY.parent / "quickstart.yaml"))
    variables = choose_variables(plan.ratios, plan.model, 3, groups=True, free_head=True, weigh_by_layers=False)
    records, _ = read_records(FAMILY / "data" / "keep.jsonl", responses=True)
    samples, _ = tokenize(records[:40], open_tokenizer(plan.checkpoints["sft"]), raw=False)
    found: list[Measured] = []
    for device in ("cpu", "cuda"):
        merged = load_merged_model(plan, *tensor_groups(plan, variables), device=device, compute=torch.float32)
        with torch.no_grad():
            merged.variables.copy_(torch.tensor([0.9, 0.2, 0.6, 0.7, 0.35, 0.5, 0.8]))
        found.append(measure(merged, samples, gradient=True, divergence=divergence))
    one, other = found
    assert torch.allclose(one.sums, other.sums, rtol=1e-3, atol=1e-4)
    assert torch.allclose(one.gradient, other.gradient, rtol=1e-3, atol=1e-5)
