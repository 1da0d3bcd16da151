"""How sure every fitted ratio is, from differences between passes near the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from amatax.fitting.bootstrap import FEWEST, Interval
from amatax.fitting.evidence import prompt_groups
from amatax.fitting.likelihood import Measured
from amatax.fitting.optimum import AT_BOUND

NORMAL = 1.959963984540054  # the normal quantile of 95 %
STEP = 0.01  # of the differences
NEAR = 0.05  # a point of the descent that is no farther from the optimum serves as well
STEP_ROUGHLY, NEAR_ROUGHLY = 0.05, 0.1  # in 16 bits: rounding is as large as what a shorter step changes
ALONG = 0.15  # where one direction is free: one that is no farther
SLOPES = 0.03  # slopes that are no farther apart say the same


class Move(NamedTuple):
    """From the middle to another point that was measured: in the directions' coordinates, (directions,)."""

    step: np.ndarray
    there: Measured


def directions(free: Sequence[bool], shares: Sequence[float], *, held: bool) -> np.ndarray:
    """Orthonormal directions (unknowns, directions) in which a fit can move.

    Args:
        free: of each unknown, whether it can move by itself.
        shares: each unknown's share in the mean.
        held: the mean is held, so the ratios move against each other.
    """
    basis, normal = np.eye(len(free))[:, list(free)], np.array(shares, dtype=float)[list(free)]
    if held and normal.any():
        basis = basis @ np.linalg.svd(normal[None])[2][1:].T
        basis[np.abs(basis).max(1, initial=0) < AT_BOUND] = 0  # the mean alone says what it is
    return basis


def ratio_covariance(
    measure: Callable[[list[float], bool], Measured],
    values: Sequence[float],
    basis: np.ndarray,
    prompts: Sequence[Sequence[str]],
    *,
    known: Sequence[tuple[Sequence[float], Measured]] = (),
    limited: Measured | None = None,
    precise: bool = True,
) -> np.ndarray | None:
    """The sandwich H^-1 J H^-1 along the directions in which the fit could move.

    H is the curvature of what is minimised and J the spread of the prompts' scores, both by differences between passes near the
    optimum: those that are known, and as few more as are needed. At a limit that the fit reached, the equations are those of
    Lagrange, of which the limit, that varies with the prompts too, is one (the delta method).

    Args:
        measure: (point, gradient) -> a pass over all that is minimised; at a limit, the Lagrangian.
        values: the optimum.
        basis: float64 (unknowns, directions): `directions`.
        prompts: of each sample, part by part: prompts of different parts were drawn apart.
        known: points, and what such passes found there.
        limited: at a limit: what is limited, at the optimum with its gradient, over the samples of the last part.
        precise: values tell small differences (float32 and wider): in one direction they stand for a gradient.

    Returns:
        float64 (unknowns, unknowns), 0 for what cannot move; None if prompts are few or the function is not curved upwards.
    """
    optimum, count = np.array(values, dtype=float), basis.shape[1]
    groups = [prompt_groups(part) for part in prompts]
    if not count or any(int(group.max()) + 1 < max(FEWEST, 2 * count) for group in groups):
        return None

    if count == 1 and precise:
        scores, tokens, hessian = _on_a_line(measure, optimum, basis[:, 0], known)
    else:
        scores, tokens, hessian = _in_space(measure, optimum, basis, known, precise)
    tangent = np.eye(count)
    if limited is not None:
        normal = basis.T @ np.array(limited.slope())
        own = (limited.sums / limited.tokens.sum()).numpy()
        scores = np.vstack([scores, np.concatenate([np.zeros(scores.shape[1] - len(own)), own])])
        hessian = np.block([[hessian, normal[:, None]], [normal[None], np.zeros((1, 1))]])
        tangent = np.linalg.svd(normal[None])[2][1:].T
    if np.linalg.eigvalsh(tangent.T @ hessian[:count, :count] @ tangent).min(initial=np.inf) <= 0:
        return None
    inverse = np.linalg.inv(hessian)
    spread = inverse @ _spread(scores, tokens, groups) @ inverse.T
    return np.asarray(basis @ spread[:count, :count] @ basis.T)


def ratio_intervals(values: Sequence[float], covariance: np.ndarray | None) -> list[Interval | None]:
    """95 % of each, clipped to 0..1; None for what cannot move."""
    if covariance is None:
        return [None] * len(values)
    return [
        interval_of(value, float(variance)) if variance > 0 else None
        for value, variance in zip(values, covariance.diagonal(), strict=True)
    ]


def mean_interval(
    values: Sequence[float], intervals: Sequence[Interval | None], shares: Sequence[float], covariance: np.ndarray
) -> Interval:
    """95 % of the mean, where it is not held; no farther than the ratios' own intervals let it go."""
    weights = np.array(shares)
    ends = [
        (value, value) if known is None else (known.low, known.high)
        for value, known in zip(values, intervals, strict=True)
    ]
    least, most = (float(weights @ end) for end in zip(*ends, strict=True))
    found = interval_of(float(weights @ values), float(weights @ covariance @ weights))
    return Interval(found.value, max(found.low, least), min(found.high, most))


def interval_of(ratio: float, variance: float) -> Interval:
    """95 % by the normal quantile, clipped to 0..1."""
    reach = NORMAL * math.sqrt(max(variance, 0.0))
    return Interval(ratio, max(0.0, ratio - reach), min(1.0, ratio + reach))


def _spread(scores: np.ndarray, tokens: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """How the summed scores vary (directions, directions) with the prompts that are drawn, part by part.

    A part's mean is a sum over samples by a sum over their tokens: what a prompt adds to it is its score less its tokens' share of all.
    """
    total, begin = np.zeros((len(scores), len(scores))), 0
    for group in groups:
        rows = slice(begin, begin := begin + len(group))
        share = tokens[rows] / tokens[rows].sum()
        own = scores[:, rows] - np.outer(scores[:, rows].sum(1), share)
        clusters = np.stack([np.bincount(group, score) for score in own], 1)
        total += clusters.T @ clusters * len(clusters) / (len(clusters) - 1)
    return total


def _in_space(
    measure: Callable[[list[float], bool], Measured],
    optimum: np.ndarray,
    basis: np.ndarray,
    known: Sequence[tuple[Sequence[float], Measured]],
    precise: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sample's score in each direction (directions, samples), its tokens (samples,), and the Hessian (directions, directions);
    scores and Hessian are summed over tokens."""
    count, length = basis.shape[1], STEP if precise else STEP_ROUGHLY
    reach = NEAR if precise else NEAR_ROUGHLY
    near = [(np.array(point), found) for point, found in known if _apart(np.array(point) - optimum, basis) <= reach]
    near.sort(key=lambda n: (n[1].gradient is None, _apart(n[0] - optimum, basis)))
    if near and near[0][1].gradient is not None:
        middle, here = near[0]
    else:
        middle, here = optimum, measure([float(v) for v in optimum], True)
    moves = _spanning([Move(basis.T @ (point - middle), found) for point, found in near], precise)
    while (direction := _missing(moves, count)) is not None:
        step = _inside(middle, length * basis @ direction)
        gradient = not precise or len(moves) < count - 1 or any(move.there.gradient is None for move in moves)
        moves.append(Move(basis.T @ step, measure([float(v) for v in middle + step], gradient)))
    steps = np.stack([move.step for move in moves], 1)
    changes = np.stack([(move.there.sums - here.sums).numpy() for move in moves])
    return np.linalg.solve(steps.T, changes), here.tokens.numpy(), _hessian(moves, here, basis)


def _on_a_line(
    measure: Callable[[list[float], bool], Measured],
    optimum: np.ndarray,
    line: np.ndarray,
    known: Sequence[tuple[Sequence[float], Measured]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_in_space` gives, where one direction is free: the bend is that of the parabola or the cubic through what is known there.

    Two values, then slopes, then more values, the nearest first, until there are four facts; the score is the difference of the
    first two values.
    """
    steps = [(float(line @ (np.array(point) - optimum)), found) for point, found in known
             if _apart(np.array(point) - optimum, line[:, None]) <= ALONG]  # fmt: skip
    steps.sort(key=lambda one: abs(one[0]))
    sloped = _apart_by(SLOPES, [one for one in steps if one[1].gradient is not None])
    if not sloped:
        here = measure([float(v) for v in optimum], True)
        steps, sloped = [(0.0, here), *steps], [(0.0, here)]
    elif abs(steps[0][0]) > AT_BOUND:
        steps = [(0.0, measure([float(v) for v in optimum], False)), *steps]
    valued = _apart_by(STEP / 2, steps)
    if len(valued) == 1 or abs(valued[1][0]) > NEAR:
        aside = _inside(optimum, STEP * line)
        valued.insert(1, (float(line @ aside), measure([float(v) for v in optimum + aside], False)))
    (_, here), (apart, there) = valued[:2]

    tokens, powers = float(here.tokens.sum()), np.arange(4)
    values = [((step / ALONG) ** powers, float((found.sums - here.sums).sum())) for step, found in valued]
    slopes = [
        (powers * (step / ALONG) ** np.maximum(powers - 1, 0), float(line @ np.array(found.slope())) * tokens * ALONG)
        for step, found in sloped
    ]
    facts = [*values[:2], *slopes, *values[2:]][: len(powers)]
    curve = np.linalg.solve([row[: len(facts)] for row, _ in facts], [number for _, number in facts])
    scores = ((there.sums - here.sums).numpy() / apart)[None]
    return scores, here.tokens.numpy(), np.array([[2 * curve[2] / ALONG**2]])


def _apart_by(least: float, steps: Sequence[tuple[float, Measured]]) -> list[tuple[float, Measured]]:
    """Those of the sorted steps that are no nearer to one another, the first ones first."""
    found: list[tuple[float, Measured]] = []
    for step, there in steps:
        if all(abs(step - other) >= least for other, _ in found):
            found.append((step, there))
    return found


def _inside(middle: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The step, or back, where it would leave the models."""
    return step if ((middle + step >= 0) & (middle + step <= 1)).all() else -step


def _apart(step: np.ndarray, basis: np.ndarray) -> float:
    """How long a step is; endless if it leaves the directions."""
    inside = np.abs(step - basis @ (basis.T @ step)).max() < AT_BOUND
    return float(np.linalg.norm(step)) if inside else np.inf


def _spanning(known: Sequence[Move], precise: bool) -> list[Move]:
    """Those that point in directions of their own, the first ones first; of those without a gradient one alone."""
    moves: list[Move] = []
    shortest, longest = (STEP / 2, NEAR) if precise else (STEP_ROUGHLY / 2, NEAR_ROUGHLY)
    left = np.eye(len(known[0].step)) if known else np.empty(0)  # projects on the directions that no move has yet
    for move in known:
        size, own = np.linalg.norm(move.step), np.linalg.norm(left @ move.step)
        tells = move.there.gradient is not None or (precise and all(m.there.gradient is not None for m in moves))
        if tells and shortest <= size <= longest and own > size / 2:
            moves.append(move)
            left = left - np.outer(left @ move.step, left @ move.step) / own**2
    return moves


def _missing(moves: Sequence[Move], count: int) -> np.ndarray | None:
    """A unit vector in which no move points."""
    if len(moves) == count:
        return None
    there = np.stack([move.step for move in moves], 1) if moves else np.zeros((count, 1))
    return np.asarray(np.linalg.svd(there)[0][:, len(moves)])


def _hessian(moves: Sequence[Move], here: Measured, basis: np.ndarray) -> np.ndarray:
    """The symmetric H, by least squares: H s is how the gradient changes along s; where only the value is known, s H s / 2 is by how
    much it leaves the tangent."""
    count, tokens = basis.shape[1], float(here.tokens.sum())
    entries = np.triu_indices(count)
    parts = np.zeros((len(entries[0]), count, count))
    for part, i, j in zip(parts, *entries, strict=True):
        part[i, j] = part[j, i] = 1.0
    slope = basis.T @ np.array(here.slope()) * tokens
    rows, told = [], []
    for step, there in moves:
        size = np.linalg.norm(step)
        if there.gradient is not None:
            rows.append((parts @ step).T / size)
            told.append((basis.T @ np.array(there.slope()) * tokens - slope) / size)
        else:
            bend = float((there.sums - here.sums).sum()) - slope @ step
            rows.append((parts @ step @ step)[None] / size**2)
            told.append(np.array([2 * bend / size**2]))
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(told))[0]
    return np.asarray(np.tensordot(found, parts, 1))
