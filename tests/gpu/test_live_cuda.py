"""The live model on a GPU: what `amatax merge --device cuda` writes, and for the average what the CPU does, bit for bit."""

from __future__ import annotations

import pytest
import torch

from amatax.evaluation.live import LiveModel
from amatax.planning.plan import make_plan
from amatax.recipes.gallery import gallery
from amatax.recipes.loading import load_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", gallery())
def test_the_same_weights_as_a_merge(name: str) -> None:
    recipe = load_recipe(gallery()[name])
    for dtype in (None, "float32"):
        wanted = recipe.model_copy(update={"output": recipe.output.model_copy(update={"dtype": dtype})})
        live = LiveModel.open(make_plan(wanted), "cuda")
        live.set(0.9)
        live.set(wanted)
        live.check()
        if recipe.merge.method == "average":
            host = LiveModel.open(make_plan(wanted), "cpu").model.state_dict()
            assert all(torch.equal(tensor.cpu(), host[n]) for n, tensor in live.model.state_dict().items())
