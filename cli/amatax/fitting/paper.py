"""The paper's own way (AMA, arXiv 2309.06256): Eq. 13 in the mean form, trained as Table 3 says, and the regulariser of C.5.

With Adam at the paper's rate a logit moves by about 0.02 in 2,000 steps, and the ratios by less than 0.005: this is here to be
compared with, and is not the default.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amatax.errors import AmataxError
from amatax.fitting.optimum import Function, Optimum
from amatax.fitting.problem import Problem

WARM_UP = 0.03  # of the steps; then a cosine down to 0 (Table 3)
CORNER = 1e-3  # within which |x| is rounded off


@dataclass(frozen=True)
class Preset:
    """Table 3 of the paper: one epoch of Adam, a sample a step.

    Attributes:
        rate: of Adam; 4e-5 for PPO and DPO, 2e-5 for rejection sampling.
        eps: of Eq. 13.
    """

    rate: float = 4e-5
    eps: float = 0.1


def ratios_of(logits: torch.Tensor, alpha: float, eps: float) -> torch.Tensor:
    """Eq. 13 in the mean form: alpha * K * (sigmoid(s) + eps) / sum(sigmoid(s) + eps), (K,) -> (K,); the paper's sums to alpha."""
    raw = torch.sigmoid(logits) + eps
    return alpha * len(logits) * raw / raw.sum()


def eps_needed(alpha: float, blocks: int) -> float:
    """The eps from which on no ratio of Eq. 13 passes 1, whatever the logits; at most 0 if none can."""
    return math.inf if alpha == 1 and blocks > 1 else (alpha * blocks - 1) / (blocks * (1 - alpha)) if alpha < 1 else 0


def check_preset(preset: Preset, alpha: float, blocks: int) -> None:
    """Make sure that Eq. 13 keeps to 0..1.

    Raises:
        AmataxError: with the eps that is needed.
    """
    needed = eps_needed(alpha, blocks)
    if preset.eps >= needed:
        return
    hint = (
        f"pass --eps {math.ceil(needed * 1e4) / 1e4:g}" if needed < math.inf else "at alpha 1 there is nothing to fit"
    )
    raise AmataxError(
        f"Eq. 13 with eps {preset.eps:g} lets a ratio pass 1 at alpha {alpha:g} and {blocks} blocks: "
        f"it needs eps {needed:.4f}",
        f"{hint}, or leave --preset out: the default fit keeps to 0..1 by construction",
    )


def one_epoch(problem: Problem, alpha: float, preset: Preset, seed: int) -> Optimum:
    """One epoch over the fitted samples in a drawn order.

    Returns:
        The ratios after it, and the NLL on the fitted part before and after.
    """
    samples = problem.parts["fit"]
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    logits = torch.zeros(len(problem.shares), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=preset.rate)
    warm = max(1, round(WARM_UP * len(order)))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, warm, len(order)))
    start = _numbers(ratios_of(logits, alpha, preset.eps))
    for i in order:
        problem.parts[f"sample {i}"] = [samples[i]]
        ratios = ratios_of(logits, alpha, preset.eps)
        found = problem.measured(f"sample {i}", _numbers(ratios), gradient=True)
        adam.zero_grad()
        ratios.backward(torch.tensor(found.slope(), dtype=torch.float64))
        adam.step()
        schedule.step()
    values = _numbers(ratios_of(logits, alpha, preset.eps))
    path = [problem.measured("fit", point).mean for point in (start, values)]
    return Optimum(values, path[-1], len(order), path)


def regularised(function: Function, weights: Sequence[float], alpha: float) -> Function:
    """f + sum(w * |a - alpha|), the corner of |x| rounded off within 1e-3 (C.5)."""

    def evaluate(values: list[float]) -> tuple[float, list[float]]:
        value, slope = function(values)
        lengths = [math.hypot(v - alpha, CORNER) for v in values]
        value += sum(w * (length - CORNER) for w, length in zip(weights, lengths, strict=True))
        return value, [
            s + w * (v - alpha) / length for s, w, v, length in zip(slope, weights, values, lengths, strict=True)
        ]

    return evaluate


def penalty_weights(problem: Problem, strength: float) -> list[float]:
    """Of each unknown: `middle_weights` of its block; 0 for a free head."""
    width = 2 if problem.variables.groups else 1  # unknowns of a block
    blocks = sum(1 for share in problem.shares if share) // width
    weights = [weight for weight in middle_weights(blocks, strength) for _ in range(width)]
    return weights + [0.0] * (len(problem.shares) - len(weights))


def middle_weights(blocks: int, strength: float) -> list[float]:
    """Weights of C.5, largest in the middle, whatever the number of layers: a triangle that peaks at `strength`."""
    middle = (blocks - 1) / 2
    return [strength * (1 - abs(i - middle) / (middle + 1)) for i in range(blocks)]


def _rate(step: int, warm: int, steps: int) -> float:
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _numbers(values: torch.Tensor) -> list[float]:
    return [float(value) for value in values.detach()]
