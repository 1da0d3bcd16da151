"""A surrogate in a sweep: the merges it is fitted to, those it proposes, its front, and how far it misses what it was not fitted to.

It is fitted to its own design alone, so that neither other ways of merging nor a rerun change what it says, and they can be held
against it. The proposals come from the half of the samples that chooses; what is told and drawn is of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amatax.errors import AmataxError, DataError
from amatax.evaluation.fronts import is_merge, pairs
from amatax.evaluation.measuring import weights_of
from amatax.evaluation.points import Wanted, surrogate_point, with_model
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Point, Results
from amatax.evaluation.statistics import standard_error, value_of
from amatax.evaluation.surrogate import (
    Proposal,
    Surface,
    block_ratios,
    design,
    ends_of,
    fit_surfaces,
    grade,
    predicted_front,
    propose,
    terms,
)
from amatax.planning.plan import make_plan
from amatax.recipes.schema import Recipe

MOST_BLOCKS = 9  # 55 coefficients; more are no few evaluations
MOST_POINTS = 200  # of a design, which is searched for
MOST_PROPOSED = 3
FORMAT = 1
FIGURES = 9  # significant, of what is written

Array = NDArray[np.float64]


class Predicting(NamedTuple):
    """A surrogate before anything is measured.

    Attributes:
        blocks: K.
        points: of its design.
        ends: SFT and RLHF are all ratios 0 and all 1, and it is fitted to them, too.
    """

    blocks: int
    points: tuple[Wanted, ...]
    ends: bool


class Miss(NamedTuple):
    """How far the quadratic of a measure misses points that it was not fitted to: roots of mean squares, NaN where there are none.

    Attributes:
        measure: its name.
        left_out: the points of the design, each left out in turn.
        proposed: the proposals, as they were measured.
        others: uniform averages and the grid, where they were measured.
        noise: the median standard error of a point.
        spread: the standard deviation of what it was fitted to.
        words: how well that is: at new points (the proposals and the others), and at those left out.
    """

    measure: str
    left_out: float
    proposed: float
    others: float
    noise: float
    spread: float
    words: str


@dataclass(frozen=True)
class Foretold:
    """What a surrogate said.

    Attributes:
        blocks: K.
        fitted: the names of the points that it was fitted to.
        proposals: what it proposed, with what it predicts on all samples.
        names: of the points that are those.
        others: the names of the points that it was held against.
        surfaces: by measure.
        misses: a row per measure.
        fronts: by (gain, tax): ratios (points, blocks), and values (points, 2).
        note: why nothing was proposed, or predicted; "" if all went well.
    """

    blocks: int
    fitted: tuple[str, ...]
    proposals: tuple[Proposal, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    surfaces: dict[str, Surface]
    misses: tuple[Miss, ...]
    fronts: dict[tuple[str, str], tuple[Array, Array]]
    note: str = ""

    @property
    def drawn(self) -> dict[tuple[str, str], Array]:
        """The values of its fronts, for pictures."""
        return {pair: values for pair, (_, values) in self.fronts.items()}

    def headline(self) -> str:
        """What was fitted to what."""
        count = (self.blocks + 1) * (self.blocks + 2) // 2
        ratios = f"{self.blocks} ratio{'s' if self.blocks > 1 else ''}"
        return (
            f"For each measure a quadratic in {ratios} ({count} coefficients) was fitted to {len(self.fitted)} points."
        )


def plan_surrogate(recipe: Recipe, blocks: int, count: int) -> Predicting:
    """The merges that a surrogate needs.

    Args:
        recipe: whose method and words all merges have.
        blocks: K.
        count: of its design, without SFT and RLHF.

    Raises:
        AmataxError: if that is too few, or too many.
    """
    if blocks > MOST_BLOCKS:
        need = (blocks + 1) * (blocks + 2) // 2
        message = f"--surrogate: a quadratic in {blocks} ratios has {need} coefficients, and takes as many merges"
        raise AmataxError(message, f"name at most {MOST_BLOCKS} --blocks, or fit the ratios: --with fitted")
    if count > MOST_POINTS:
        raise AmataxError(f"--surrogate {count}: more than {MOST_POINTS} merges", "--grid takes many")
    whole = [surrogate_point(recipe, "surrogate", [ratio] * blocks) for ratio in (0.0, 1.0)]
    ends = all(
        _weights(point.recipe) == _weights(with_model(recipe, role))
        for point, role in zip(whole, ("sft", "rlhf"), strict=True)
    )
    try:
        ratios = design(blocks, count, ends=ends)
    except DataError as error:
        raise AmataxError(f"--surrogate {count}: {error.message}", error.hint) from None
    return Predicting(blocks, tuple(surrogate_point(recipe, "surrogate", row) for row in ratios.tolist()), ends)


def proposed_points(
    recipe: Recipe, predicting: Predicting, results: Results, requirements: Sequence[Requirement]
) -> tuple[list[tuple[Wanted, Proposal]], str]:
    """The merges that are predicted to be best, to be measured; and where there are none, why."""
    try:
        found = propose(_design(results, predicting), requirements, MOST_PROPOSED, predicting.ends)
    except DataError as error:
        return [], f"The surrogate proposed nothing: {error.message}."
    return [(surrogate_point(recipe, "proposed", proposal.ratios), proposal) for proposal in found], ""


def foretell(
    results: Results, predicting: Predicting, proposed: Sequence[tuple[Wanted, Proposal]], note: str = ""
) -> Foretold:
    """What the surrogate predicts, held against what was measured.

    Args:
        results: of the design and the proposals, and of whatever else.
        proposed: the points of the proposals.
        note: why there are none.
    """
    fitted = _design(results, predicting)
    names = tuple(point.name for point, _ in proposed)
    seen = {block_ratios(point) for point in fitted.points}
    seen |= set(ends_of(predicting.blocks)) if predicting.ends else set()
    others = [
        point
        for point in results.points
        if point.kind in ("uniform", "grid") and (at := _placed(point, predicting.blocks)) and at not in seen
    ]
    try:
        surfaces = fit_surfaces(fitted, predicting.ends)
    except DataError as error:
        surfaces, note = {}, note or f"The surrogate predicts nothing: {error.message}."
    by_name = {point.name: point for point in results.points}
    told = [
        proposal._replace(predicted={n: float(s.predict(np.array([proposal.ratios]))[0]) for n, s in surfaces.items()})
        for _, proposal in proposed
    ]
    misses = [
        _miss(results, surface, [by_name[name] for name in names], others, predicting.blocks)
        for surface in surfaces.values()
    ]
    fronts = {
        pair: predicted_front([results.measures[n] for n in pair], [surfaces[n] for n in pair], predicting.blocks)
        for pair in pairs(results)
        if set(pair) <= surfaces.keys()
    }
    return Foretold(
        predicting.blocks,
        tuple(p.name for p in fitted.points if is_merge(p))
        + (tuple(p.name for p in fitted.points if not is_merge(p)) if predicting.ends else ()),
        tuple(told),
        names,
        tuple(point.name for point in others),
        surfaces,
        tuple(misses),
        fronts,
        note,
    )


def foretold_json(results: Results, foretold: Foretold) -> dict[str, Any]:
    """Everything that was predicted, for scripts: anybody can predict with it, and count again."""
    points = {point.name: point for point in results.points}
    fitted = [points[name] for name in foretold.fitted]
    return {
        "amatax_surrogate": FORMAT,
        "blocks": foretold.blocks,
        "fitted": list(foretold.fitted),
        "terms": _term_names(foretold.blocks),
        "measures": {
            miss.measure: {
                "coefficients": _rounded(foretold.surfaces[miss.measure].coefficients),
                "left_out": _left_out(results, foretold.surfaces[miss.measure], fitted),
                "missed_by": {
                    key: _round(getattr(miss, key)) for key in ("left_out", "proposed", "others", "noise", "spread")
                },
                "in_words": miss.words,
            }
            for miss in foretold.misses
        },
        "proposals": [
            {
                "point": name,
                "ratios": list(proposal.ratios),
                "predicted_to_hold": proposal.holds,
                "predicted": {n: _round(v) for n, v in proposal.predicted.items()},
                "measured": {
                    n: [_round(value_of(results.measures[n], m)), _round(standard_error(results.measures[n], m))]
                    for n, m in points[name].measured.items()
                },
            }
            for proposal, name in zip(foretold.proposals, foretold.names, strict=True)
        ],
        "others": list(foretold.others),
        "fronts": [
            {"gain": gain, "tax": tax, "predicted": True, "ratios": _rounded(ratios), "values": _rounded(values)}
            for (gain, tax), (ratios, values) in foretold.fronts.items()
        ],
        "note": foretold.note,
    }


def _design(results: Results, predicting: Predicting) -> Results:
    """SFT, RLHF and the design alone."""
    names = {point.name for point in predicting.points}
    return replace(results, points=tuple(p for p in results.points if p.name in names or p.kind in ("sft", "rlhf")))


def _placed(point: Point, blocks: int) -> tuple[float, ...]:
    """A merge's ratios in as many blocks: of a uniform average the same in each; () of another number of blocks, or outside 0..1."""
    ratios = block_ratios(point)
    placed = ratios * blocks if point.kind == "uniform" else ratios if len(ratios) == blocks else ()
    return placed if all(0 <= ratio <= 1 for ratio in placed) else ()


def _miss(results: Results, surface: Surface, proposed: Sequence[Point], others: Sequence[Point], blocks: int) -> Miss:
    measure = results.measures[surface.measure]

    def missed(points: Sequence[Point]) -> Array:
        here = [point for point in points if surface.measure in point.measured]
        values = np.array([value_of(measure, point.measured[surface.measure]) for point in here])
        at = np.array([_placed(point, blocks) for point in here]).reshape(len(here), blocks)
        apart = values - surface.predict(at)
        return np.asarray(apart[np.isfinite(apart)])

    left_out = surface.left_out[np.isfinite(surface.left_out)]
    there, beside = missed(proposed), missed(others)
    new = _root(np.concatenate([there, beside]))
    words = _in_words(surface, new, _root(left_out))
    return Miss(surface.measure, _root(left_out), _root(there), _root(beside), surface.noise, surface.spread, words)


def _in_words(surface: Surface, new: float, left_out: float) -> str:
    """`at new points predicts well, at those left out roughly`; the proposals lie close together, and a few points left out far apart."""
    if not np.isfinite(new) and not np.isfinite(left_out):
        return "not known: as many points as coefficients"
    if not (np.isfinite(new) and np.isfinite(left_out)):
        return grade(new if np.isfinite(new) else left_out, surface)
    here, there = grade(new, surface), grade(left_out, surface)
    return here if here == there else f"at new points {here}; at those left out {there}"


def _root(errors: Array) -> float:
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else float("nan")


def _weights(recipe: Recipe | None) -> str:
    assert recipe is not None
    return weights_of(make_plan(recipe, remote=True))


def _left_out(results: Results, surface: Surface, fitted: Sequence[Point]) -> dict[str, float | None]:
    """By point: measured minus what a fit to all the others predicts."""
    measure = results.measures[surface.measure]
    known = [
        point.name
        for point in fitted
        if surface.measure in point.measured and np.isfinite(value_of(measure, point.measured[surface.measure]))
    ]
    return dict(zip(known, _rounded(surface.left_out), strict=True))


def _term_names(blocks: int) -> list[str]:
    """Of `terms`, in its order; z = 2 * ratio - 1."""
    names = [f"z{i}" for i in range(blocks)]
    both = [f"{names[i]}*{names[j]}" for i in range(blocks) for j in range(i, blocks)]
    assert 1 + len(names) + len(both) == terms(np.zeros((1, blocks))).shape[1]
    return ["1", *names, *both]


def _rounded(numbers: Array) -> list[Any]:
    return [_rounded(one) if isinstance(one, np.ndarray) else _round(float(one)) for one in numbers]


def _round(number: float) -> float | None:
    return float(f"{number:.{FIGURES}g}") if np.isfinite(number) else None
