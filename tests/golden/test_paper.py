"""Eq. 13 of AMA (arXiv 2309.06256) against numbers worked out by hand (golden numbers 1 to 4)."""

from __future__ import annotations

import pytest
import torch

from amatax.errors import AmataxError
from amatax.fitting.paper import Preset, check_preset, eps_needed, middle_weights, ratios_of, regularised


def test_the_mean_form() -> None:
    found = ratios_of(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64), 0.4, 0.1)
    assert found.tolist() == pytest.approx([0.4, 0.5540391, 0.2459609], abs=5e-8)
    found = ratios_of(torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64), 0.6, 0.1)
    assert found.tolist() == pytest.approx([0.9807971, 0.6, 0.2192029], abs=5e-8)


def test_its_jacobian() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    found = torch.autograd.functional.jacobian(lambda s: ratios_of(s, 0.4, 0.1), logits)
    want = [
        [0.1111111, -0.0436915, -0.0436915],
        [-0.0769499, 0.0705576, -0.0605170],
        [-0.0341612, -0.0268660, 0.1042086],
    ]
    assert torch.allclose(found, torch.tensor(want, dtype=torch.float64), atol=5e-8)
    assert found.sum(0).tolist() == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("alpha", "eps"), [(0.4, 0.1111), (0.6, 0.6667)])
def test_the_eps_that_keeps_ratios_below_one(alpha: float, eps: float) -> None:
    needed = eps_needed(alpha, 3)
    assert needed == pytest.approx(eps, abs=5e-5)
    extreme = torch.tensor([60.0, -60.0, -60.0], dtype=torch.float64)
    assert ratios_of(extreme, alpha, needed).max().item() == pytest.approx(1)
    assert ratios_of(extreme, alpha, needed - 0.01).max() > 1
    check_preset(Preset(eps=needed + 1e-4), alpha, 3)
    with pytest.raises(AmataxError, match=rf"alpha {alpha} and 3 blocks: it needs eps {eps}"):
        check_preset(Preset(eps=0.1), alpha, 3)


def test_the_regulariser_weighs_the_middle_most() -> None:
    assert middle_weights(3, 2.0) == [1.0, 2.0, 1.0]
    assert middle_weights(4, 1.0) == pytest.approx([0.4, 0.8, 0.8, 0.4])
    function = regularised(lambda values: (1.0, [0.0] * 3), middle_weights(3, 2.0), 0.4)
    value, slope = function([0.4, 0.9, 0.2])
    assert value == pytest.approx(1 + 2 * 0.5 + 0.2, abs=5e-3)
    assert slope == pytest.approx([0, 2, -1], abs=1e-4)
