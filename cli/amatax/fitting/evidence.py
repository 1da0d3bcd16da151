"""How sure a fit is: a paired bootstrap over prompts for two sets of ratios, and an interval for every ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from amatax.fitting.likelihood import Measured

DRAWS = 4000
AT_ONCE = 100  # draws
LEVEL = 0.95
NORMAL = 1.959963984540054  # the normal quantile of LEVEL
STEP = 0.01  # of the differences
NEAR = 0.05  # a point of the descent that is no farther from the optimum serves as well
FEWEST = 10  # prompts; a bootstrap of fewer is surer than it should be
AT_BOUND = 1e-6


class Interval(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(one: Measured, other: Measured, prompts: Sequence[str], seed: int) -> Interval:
    """NLL of one minus NLL of the other, nats per token; percentiles over prompts drawn with replacement.

    Args:
        one, other: of the same samples.
        prompts: of each sample; responses to one prompt are drawn together.
        seed: of the draws.
    """
    group = _groups(prompts)
    difference = np.bincount(group, (one.sums - other.sums).numpy())
    tokens = np.bincount(group, one.tokens.numpy())
    count, random = len(tokens), np.random.default_rng(seed)
    draws = np.empty(DRAWS)
    for begin in range(0, DRAWS, AT_ONCE):  # drawn all at once they would be gigabytes
        drawn = random.multinomial(count, np.full(count, 1 / count), size=AT_ONCE)
        draws[begin : begin + AT_ONCE] = (drawn @ difference) / (drawn @ tokens)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(difference.sum() / tokens.sum()), float(low), float(high))


def ratio_intervals(
    measure: Callable[[list[float]], Measured],
    values: Sequence[float],
    shares: Sequence[float],
    prompts: Sequence[str],
    *,
    held: bool,
    known: Sequence[Sequence[float]] = (),
) -> list[Interval | None]:
    """Sandwich intervals H^-1 J H^-1 along the directions in which the fit could move, clipped to 0..1.

    H is the curvature of the summed NLL and J the spread of the prompts' scores, both by differences: one pass with gradients
    at the optimum (made already) and one for each direction in which no known point lies near.

    Args:
        measure: a pass with gradients over the fitted samples at given values.
        values: the optimum.
        shares: each unknown's share in the mean.
        prompts: of each sample.
        held: the mean is held, so the ratios move against each other.
        known: points at which such passes were made.

    Returns:
        An interval for each unknown; None at a bound, and everywhere if prompts are few or the likelihood is not curved upwards.
    """
    free = [i for i, v in enumerate(values) if AT_BOUND < v < 1 - AT_BOUND]
    basis = _directions(len(values), free, np.array(shares, dtype=float) if held else None)
    if not basis.shape[1]:
        return [None] * len(values)
    group = _groups(prompts)
    clusters = int(group.max()) + 1
    if clusters < max(FEWEST, 2 * basis.shape[1]):
        return [None] * len(values)
    scores, bends = [], []
    here, middle = measure([float(v) for v in values]), np.array(values, dtype=float)
    moves = _moves(middle, basis, [np.array(point) - middle for point in known])
    for move in moves:
        there = measure([float(v) for v in middle + move])
        scores.append(np.bincount(group, (there.sums - here.sums).numpy()))
        bends.append(basis.T @ (np.array(there.slope()) - np.array(here.slope())) * float(here.tokens.sum()))
    steps = basis.T @ np.stack(moves, 1)
    spread = np.linalg.solve(steps.T, np.stack(scores)).T
    spread = spread - spread.mean(0)
    hessian = np.linalg.solve(steps.T, np.stack(bends)).T
    hessian = (hessian + hessian.T) / 2
    if np.linalg.eigvalsh(hessian).min() <= 0:
        return [None] * len(values)
    inverse = np.linalg.inv(hessian)
    covariance = basis @ inverse @ (spread.T @ spread) @ inverse @ basis.T * clusters / (clusters - 1)
    result: list[Interval | None] = []
    for i, value in enumerate(values):
        reach = NORMAL * float(np.sqrt(max(covariance[i, i], 0.0)))
        inside = i in free
        result.append(Interval(value, max(0.0, value - reach), min(1.0, value + reach)) if inside else None)
    return result


def _moves(middle: np.ndarray, basis: np.ndarray, known: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Steps from the optimum that span the basis: known ones that are short, the shortest first, then short ones along what is left."""
    moves: list[np.ndarray] = []
    left = basis @ basis.T  # projects on the directions that no move has yet
    for move in sorted(known, key=lambda m: float(np.linalg.norm(m))):
        size, own = np.linalg.norm(move), np.linalg.norm(left @ move)
        within = np.abs(move - basis @ (basis.T @ move)).max() < AT_BOUND
        if within and STEP / 2 <= size <= NEAR and own > size / 2:
            moves.append(move)
            left = left - np.outer(left @ move, left @ move) / own**2
    for direction in np.linalg.svd(left)[0][:, : basis.shape[1] - len(moves)].T:
        inside = ((middle + STEP * direction >= 0) & (middle + STEP * direction <= 1)).all()
        moves.append(STEP * direction if inside else -STEP * direction)  # stay between the models
    return moves


def verdict(interval: Interval, prompts: int) -> str:
    """Fitted against uniform on samples that were never fitted: better, worse, indistinguishable, or too few to tell."""
    if prompts < FEWEST:
        return "too few"
    if interval.high < 0:
        return "better"
    return "worse" if interval.low > 0 else "indistinguishable"


def _groups(prompts: Sequence[str]) -> np.ndarray:
    number: dict[str, int] = {}
    return np.array([number.setdefault(prompt, len(number)) for prompt in prompts])


def _directions(count: int, free: list[int], shares: np.ndarray | None) -> np.ndarray:
    """Orthonormal directions (unknowns, directions) among the free unknowns, along the plane of the mean."""
    inner = np.eye(count)[:, free]
    if shares is None or not free or not shares[free].any():
        return inner
    normal = torch.tensor(shares[free] / np.linalg.norm(shares[free]))
    plane = torch.linalg.svd(normal[None, :]).Vh[1:].T.numpy()
    return inner @ plane
