"""An interval for every fitted ratio, from differences between passes near the optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from amatax.fitting.bootstrap import FEWEST, Interval
from amatax.fitting.evidence import prompt_groups
from amatax.fitting.likelihood import Measured
from amatax.fitting.optimum import AT_BOUND

NORMAL = 1.959963984540054  # the normal quantile of 95 %
STEP = 0.01  # of the differences
NEAR = 0.05  # a point of the descent that is no farther from the optimum serves as well
ALONG = 0.15  # where one direction is free: one that is no farther
SLOPES = 0.03  # slopes that are no farther apart say the same


class Move(NamedTuple):
    """From the middle to another point that was measured: in the directions' coordinates, (directions,)."""

    step: np.ndarray
    there: Measured


def ratio_intervals(
    measure: Callable[[list[float], bool], Measured],
    values: Sequence[float],
    shares: Sequence[float],
    prompts: Sequence[str],
    *,
    held: bool,
    known: Sequence[tuple[Sequence[float], Measured]] = (),
    precise: bool = True,
) -> list[Interval | None]:
    """Sandwich intervals H^-1 J H^-1 along the directions in which the fit could move, clipped to 0..1.

    H is the curvature of the summed NLL and J the spread of the prompts' scores, both by differences between passes near the
    optimum: those that are known, and as few more as are needed.

    Args:
        measure: (point, gradient) -> a pass over the fitted samples.
        values: the optimum.
        shares: each unknown's share in the mean.
        prompts: of each sample.
        held: the mean is held, so the ratios move against each other.
        known: points, and what such passes found there.
        precise: values tell small differences (float32 and wider): in one direction they stand for a gradient.

    Returns:
        An interval for each unknown; None at a bound, and everywhere if prompts are few or the likelihood is not curved upwards.
    """
    optimum, nothing = np.array(values, dtype=float), [None] * len(values)
    free = [i for i, v in enumerate(values) if AT_BOUND < v < 1 - AT_BOUND]
    basis = _directions(len(values), free, np.array(shares, dtype=float) if held else None)
    group = prompt_groups(prompts)
    clusters, count = int(group.max()) + 1, basis.shape[1]
    if not count or clusters < max(FEWEST, 2 * count):
        return list(nothing)

    if count == 1 and precise:
        scores, hessian = _on_a_line(measure, optimum, basis[:, 0], known)
    else:
        scores, hessian = _in_space(measure, optimum, basis, known, precise)
    spread = np.stack([np.bincount(group, score) for score in scores], 1)
    spread = spread - spread.mean(0)
    if np.linalg.eigvalsh(hessian).min() <= 0:
        return list(nothing)
    inverse = np.linalg.inv(hessian)
    covariance = basis @ inverse @ (spread.T @ spread) @ inverse @ basis.T * clusters / (clusters - 1)
    result: list[Interval | None] = list(nothing)
    for i in free:
        if np.abs(basis[i]).max() < AT_BOUND:  # the mean alone says what it is
            continue
        reach = NORMAL * float(np.sqrt(max(covariance[i, i], 0.0)))
        result[i] = Interval(values[i], max(0.0, values[i] - reach), min(1.0, values[i] + reach))
    return result


def _in_space(
    measure: Callable[[list[float], bool], Measured],
    optimum: np.ndarray,
    basis: np.ndarray,
    known: Sequence[tuple[Sequence[float], Measured]],
    precise: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's score in each direction (directions, samples), and the Hessian (directions, directions), both summed over tokens."""
    count = basis.shape[1]
    near = [(np.array(point), found) for point, found in known if _apart(np.array(point) - optimum, basis) <= NEAR]
    near.sort(key=lambda n: (n[1].gradient is None, _apart(n[0] - optimum, basis)))
    if near and near[0][1].gradient is not None:
        middle, here = near[0]
    else:
        middle, here = optimum, measure([float(v) for v in optimum], True)
    moves = _spanning([Move(basis.T @ (point - middle), found) for point, found in near], precise)
    while (direction := _missing(moves, count)) is not None:
        step = _inside(middle, STEP * basis @ direction)
        gradient = not precise or len(moves) < count - 1 or any(move.there.gradient is None for move in moves)
        moves.append(Move(basis.T @ step, measure([float(v) for v in middle + step], gradient)))
    steps = np.stack([move.step for move in moves], 1)
    changes = np.stack([(move.there.sums - here.sums).numpy() for move in moves])
    return np.linalg.solve(steps.T, changes), _hessian(moves, here, basis)


def _on_a_line(
    measure: Callable[[list[float], bool], Measured],
    optimum: np.ndarray,
    line: np.ndarray,
    known: Sequence[tuple[Sequence[float], Measured]],
) -> tuple[np.ndarray, np.ndarray]:
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
    return ((there.sums - here.sums).numpy() / apart)[None], np.array([[2 * curve[2] / ALONG**2]])


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
    left = np.eye(len(known[0].step)) if known else np.empty(0)  # projects on the directions that no move has yet
    for move in known:
        size, own = np.linalg.norm(move.step), np.linalg.norm(left @ move.step)
        tells = move.there.gradient is not None or (precise and all(m.there.gradient is not None for m in moves))
        if tells and STEP / 2 <= size <= NEAR and own > size / 2:
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


def _directions(count: int, free: list[int], shares: np.ndarray | None) -> np.ndarray:
    """Orthonormal directions (unknowns, directions) among the free unknowns, along the plane of the mean."""
    inner = np.eye(count)[:, free]
    if shares is None or not free or not shares[free].any():
        return inner
    normal = torch.tensor(shares[free] / np.linalg.norm(shares[free]))
    plane = torch.linalg.svd(normal[None, :]).Vh[1:].T.numpy()
    return inner @ plane
