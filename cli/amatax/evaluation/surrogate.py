"""A front from few evaluations: per measure a quadratic in the blocks' ratios, by least squares (a response surface; Box and Wilson, 1951).

It is told by how much it misses points that it was not fitted to. (amatax.fitting.surrogate is another thing: there a cheap likelihood
with gradients leads the descent on a dear one. Here there are no gradients, and every value is noisy.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError
from amatax.evaluation.choice import part
from amatax.evaluation.fronts import constant, corners, pareto, the_point
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Measure, Point, Results
from amatax.evaluation.rule import rule
from amatax.evaluation.series import ROUNDING
from amatax.evaluation.statistics import standard_error, value_of

LEVELS = (0.0, 0.5, 1.0)  # where the first points lie: three levels tell a parabola
STARTS = 8  # of the search for a design
GAIN = 1e-6  # of the determinant, below which an exchange is none
RIDGE = 1e-6
SATURATED = 1e-6  # of 1 - leverage: the point decides its own prediction
STEPS = {1: 100, 2: 20, 3: 20, 4: 10}  # of the grid that is predicted on, by blocks
DRAWN = 40_000  # random ratios where a grid would be too large
APART = 0.1  # two proposals differ by more than this in some ratio
NEAR = 0.02  # a point that was measured so near is not measured again

Array = NDArray[np.float64]


class Surface(NamedTuple):
    """A quadratic for one measure.

    Attributes:
        measure: its name.
        coefficients: float64 (terms,), of 2 * ratio - 1.
        left_out: at each point, measured minus what a fit to all the others predicts; NaN where the others do not tell.
        noise: the median standard error of the points.
        spread: the standard deviation of the points' values; 0 where they differ by rounding alone.
    """

    measure: str
    coefficients: Array
    left_out: Array
    noise: float
    spread: float

    def predict(self, ratios: Array) -> Array:
        """float64 (points, blocks) -> (points,)."""
        return np.asarray(terms(ratios) @ self.coefficients)


class Proposal(NamedTuple):
    """Ratios that are predicted to be good, to be measured.

    Attributes:
        ratios: of the blocks.
        predicted: by measure.
        holds: whether every requirement is predicted to hold.
    """

    ratios: tuple[float, ...]
    predicted: dict[str, float]
    holds: bool


def terms(ratios: Array) -> Array:
    """1, every ratio, and every product of two: float64 (points, (K + 1) * (K + 2) / 2) of (points, K)."""
    z = 2 * np.asarray(ratios, dtype=np.float64) - 1
    both = [z[:, i] * z[:, j] for i, j in combinations_with_replacement(range(z.shape[1]), 2)]
    return np.stack([np.ones(len(z)), *z.T, *both], axis=1)


def design(blocks: int, count: int, seed: int = 0, ends: bool = True) -> Array:
    """Where the first points are put: a D-optimal design on three levels, by coordinate exchange (Meyer and Nachtsheim, 1995).

    SFT and RLHF are measured anyway: where they are all 0 and all 1 they are counted in, and not returned. No point comes twice: it would
    be the same merge on the same samples, and tell nothing new.

    Args:
        blocks: K.
        count: how many points; with the two, at least the (K + 1) * (K + 2) / 2 coefficients.
        seed: of the starts.
        ends: SFT and RLHF are all ratios 0 and all 1 (see `fit_surfaces`).

    Returns:
        float64 (count, blocks), in the order of their ratios.

    Raises:
        DataError: if that is too few, or more than three levels have.
    """
    corners_known = list(ends_of(blocks)) if ends else []
    given = len(corners_known)
    need, most = (blocks + 1) * (blocks + 2) // 2, len(LEVELS) ** blocks - given
    if count + given < need:
        two = " with SFT and RLHF" if ends else ""
        products = blocks * (blocks + 1) // 2
        why = "" if ends else ". SFT and RLHF do not count: all ratios 0 and all 1 are other merges in this recipe"
        raise DataError(
            f"a quadratic in {_ratios(blocks)} has {need} coefficients: {count} merges{two} cannot tell it",
            f"1, the {_ratios(blocks)}, and {products} squares and products of them: measure {need - given}, or more to see how well it predicts{why}",
        )
    if count > most:
        few = f"ask for {need - given} to {most}" if most > need - given else f"ask for {most}"
        raise DataError(
            f"a design in {_ratios(blocks)}, at three levels of each, has no more than {most} points: not {count}", few
        )
    random = np.random.default_rng(seed)
    best, found = -np.inf, np.empty((0, blocks))
    for _ in range(STARTS):
        points = list(corners_known)
        while len(points) < count + given:
            point = tuple(random.choice(LEVELS, blocks).tolist())
            if point not in points:
                points.append(point)
        value = _exchange(points, given)
        if value > best + GAIN:
            best, found = value, np.array(points[given:])
    return np.array(sorted(found.tolist()))


def fit_surface(measure: Measure, ratios: Array, values: Array, errors: Array) -> Surface:
    """The quadratic of a measure.

    Args:
        ratios: float64 (points, blocks).
        values, errors: float64 (points,), with their standard errors.

    Raises:
        DataError: if the points do not tell every coefficient.
    """
    rows = terms(ratios)
    if np.linalg.matrix_rank(rows) < rows.shape[1]:
        message = f"{measure.name}: {len(rows)} points do not tell the {rows.shape[1]} coefficients of a quadratic in {ratios.shape[1]} ratios"
        raise DataError(message, "measure more merges, at different ratios of every block")
    coefficients: Array = np.asarray(np.linalg.lstsq(rows, values, rcond=None)[0], dtype=np.float64)
    q, _ = np.linalg.qr(rows)
    free: Array = 1 - np.asarray((q * q).sum(axis=1), dtype=np.float64)  # 1 - leverage
    residual = values - rows @ coefficients
    left_out: Array = np.where(free > SATURATED, residual / np.maximum(free, SATURATED), np.nan)
    spread = float(np.std(values))
    if spread <= ROUNDING * float(np.abs(values).max()):
        spread = 0.0
    return Surface(measure.name, coefficients, left_out, float(np.median(errors)), spread)


def fit_surfaces(results: Results, ends: bool = True) -> dict[str, Surface]:
    """The quadratics of every measure, from every merge that names its blocks' ratios.

    Args:
        results: all merges must have as many blocks.
        ends: SFT and RLHF count as all ratios 0 and all 1: right if no part of the model is held at a ratio of its own.

    Raises:
        DataError: see `fit_surface`.
    """
    placed = [(block_ratios(point), point) for point in results.points if point.ratios]
    if not placed:
        raise DataError("no merge names its blocks' ratios", "measure some")
    blocks = len(placed[0][0])
    if any(len(ratios) != blocks for ratios, _ in placed):
        raise DataError("the merges have different numbers of blocks", "draw a front of one of them at a time")
    if ends:
        placed += zip(ends_of(blocks), (the_point(results, "sft"), the_point(results, "rlhf")), strict=True)
    found = {}
    for name, measure in results.measures.items():
        known = [
            (ratios, point.measured[name])
            for ratios, point in placed
            if name in point.measured and np.isfinite(value_of(measure, point.measured[name]))
        ]
        if known:
            values = np.array([value_of(measure, m) for _, m in known])
            errors = np.array([standard_error(measure, m) for _, m in known])
            found[name] = fit_surface(measure, np.array([ratios for ratios, _ in known]), values, errors)
    return found


def propose(
    results: Results, requirements: Sequence[Requirement] = (), count: int = 3, ends: bool = True
) -> list[Proposal]:
    """The merges that are predicted to be best by the rule of the choice, to be measured; from the half of the samples that chooses.

    They differ from each other and from what was measured. Where none is predicted to hold every requirement, those that come nearest.
    """
    choosing = part(results, "choose")
    surfaces = fit_surfaces(choosing, ends)
    wanted = rule(results.measures, corners(choosing), requirements, without=constant(results))
    if missing := [name for name in wanted.names if name not in surfaces]:
        raise DataError(f"no merge was measured by {', '.join(missing)}", "measure it at every point")
    ratios = lattice(len(block_ratios(next(point for point in results.points if point.ratios))))
    values = {name: surface.predict(ratios) for name, surface in surfaces.items()}
    alphas = ratios.mean(axis=1).tolist()
    order = wanted.order(values, alphas, [""] * len(ratios))
    holds = wanted.shortfalls(values) == 0
    taken: list[int] = []
    known = [block_ratios(point) for point in results.points if point.ratios]
    if ends:
        known += ends_of(ratios.shape[1])
    measured = np.array(known)
    for i in order:
        far = all(np.abs(ratios[i] - ratios[j]).max() > APART + 1e-9 for j in taken)
        if far and np.abs(measured - ratios[i]).max(axis=1).min() > NEAR:
            taken.append(i)
            if len(taken) == count:
                break
    return [
        Proposal(tuple(ratios[i].tolist()), {name: float(v[i]) for name, v in values.items()}, bool(holds[i]))
        for i in taken
    ]


def predicted_front(measures: Sequence[Measure], surfaces: Sequence[Surface], blocks: int) -> tuple[Array, Array]:
    """Ratios that none is predicted to beat in these measures, and their values: (points, blocks), (points, measures), by the first."""
    ratios = lattice(blocks)
    values = np.stack([surface.predict(ratios) for surface in surfaces], axis=1)
    signs = np.array([1.0 if measure.higher else -1.0 for measure in measures])
    best = pareto(values * signs)
    best.sort(key=lambda i: values[i].tolist())
    return ratios[best], values[best]


def lattice(blocks: int) -> Array:
    """Ratios to predict at: a grid, or where that were too large random ones, the same every time."""
    if blocks in STEPS:
        steps = STEPS[blocks]
        return np.array(list(product([i / steps for i in range(steps + 1)], repeat=blocks)))
    return np.random.default_rng(0).random((DRAWN, blocks)).round(3)


def ends_of(blocks: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The ratios of SFT and of RLHF, where no part of the model is held at a ratio of its own."""
    return (0.0,) * blocks, (1.0,) * blocks


def block_ratios(point: Point) -> tuple[float, ...]:
    """The ratios of a merge's blocks, attention and MLP apart where they are."""
    return tuple(ratio for name, ratio in point.ratios.items() if name.startswith("blocks."))


def error_in_words(surface: Surface) -> str:
    """How well the quadratic foretells points that it was not fitted to, from those left out one at a time."""
    known = surface.left_out[np.isfinite(surface.left_out)]
    if not len(known):
        return f"{surface.measure}: not known; there are as many points as coefficients, and none can be left out"
    error = float(np.sqrt((known**2).mean()))
    scale = f"points left out one at a time are missed by {error:.3g} (measured to ±{surface.noise:.3g}, spread {surface.spread:.3g})"
    return f"{surface.measure}: {grade(error, surface)}; {scale}"


def confirmed_in_words(surface: Surface, proposals: Sequence[Proposal], results: Results, names: Sequence[str]) -> str:
    """How well it foretold the proposals that were then measured.

    Args:
        proposals: with their predictions.
        names: of the points in the results that are those proposals, in their order.
    """
    points = {point.name: point.measured[surface.measure] for point in results.points if point.name in names}
    measure = results.measures[surface.measure]
    rows, errors = [], []
    for proposal, name in zip(proposals, names, strict=True):
        predicted, value = proposal.predicted[surface.measure], value_of(measure, points[name])
        errors.append(value - predicted)
        rows.append(f"{predicted:.3g} foretold, {value:.3g} ± {standard_error(measure, points[name]):.2g} measured")
    error = float(np.sqrt(np.mean(np.square(errors))))
    return f"{surface.measure}: {grade(error, surface)}; {'; '.join(rows)}"


def _ratios(blocks: int) -> str:
    return f"{blocks} ratio{'s' if blocks > 1 else ''}"


def grade(error: float, surface: Surface) -> str:
    """In words, how well a measure is predicted whose held-out points are missed by so much (root of the mean square)."""
    if surface.spread == 0 and error <= max(2 * surface.noise, ROUNDING * float(np.abs(surface.coefficients).max())):
        return "does not vary: there is nothing to predict"
    if error <= 2 * surface.noise:
        return "predicts about as well as can be measured"
    explained = 1 - (error / surface.spread) ** 2 if surface.spread > 0 else 0.0
    if explained >= 0.9:
        return "predicts well"
    return "predicts roughly" if explained >= 0.5 else "does not predict"


def _exchange(points: list[tuple[float, ...]], given: int) -> float:
    """Change one coordinate after another while the design gets better; the first `given` points stay, and no two become one.

    A row a of the information matrix M becomes b: its determinant is multiplied by (1 + b'Db)(1 - a'Da) + (a'Db)^2, D = M^-1.

    Returns:
        The log of the determinant.
    """
    rows = terms(np.array(points))
    ridge = RIDGE * np.eye(rows.shape[1])  # a start may be singular
    inverse = np.linalg.inv(rows.T @ rows + ridge)
    improved = True
    while improved:
        improved = False
        for i, j in product(range(given, len(points)), range(len(points[0]))):
            others = [(*points[i][:j], level, *points[i][j + 1 :]) for level in LEVELS if level != points[i][j]]
            others = [other for other in others if other not in points]
            if not others:
                continue
            a, b = rows[i], terms(np.array(others))
            towards = b @ inverse
            own = (1 + (towards * b).sum(axis=1)) * (1 - a @ inverse @ a)
            gains = own + (towards @ a) ** 2
            best = int(gains.argmax())
            if gains[best] > 1 + GAIN:
                points[i], rows[i], improved = others[best], b[best], True
                inverse = np.linalg.inv(rows.T @ rows + ridge)
    return float(np.linalg.slogdet(rows.T @ rows + ridge)[1])
