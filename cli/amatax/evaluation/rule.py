"""Which of several merges is best: requirements first, then what no requirement names. One rule, for measured and for predicted values.

The score of a merge is the mean of its normalised gains, plus the mean of its normalised taxes (1: no tax). If the requirements name
taxes only, the gains alone are counted; if they name gains only, the taxes alone: the user has said what must hold, and wants as much
as can be had of the rest. Without a requirement it is the knee: the point of the front that lies farthest above the straight line
from SFT to RLHF (Das, 1999).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError
from amatax.evaluation.fronts import Corners, Side, sides
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Measure

Values = Mapping[str, NDArray[np.float64]]  # by measure: (points,)


class Rule(NamedTuple):
    """What is wanted.

    Attributes:
        measures: of the table.
        ends: the measures on SFT and RLHF.
        requirements: which all must hold.
        counted: the measures of the score, by side.
    """

    measures: Mapping[str, Measure]
    ends: Mapping[str, Corners]
    requirements: tuple[Requirement, ...]
    counted: Mapping[Side, list[str]]

    @property
    def names(self) -> list[str]:
        """Every measure that a merge must have to be judged."""
        wanted = {*(r.name for r in self.requirements), *(n for names in self.counted.values() for n in names)}
        return [name for name in self.measures if name in wanted]

    def score(self, values: Values) -> NDArray[np.float64]:
        """(points,): more is better."""
        parts = [
            np.mean([self.ends[name].normalised(self.measures[name], values[name]) for name in names], axis=0)
            for names in self.counted.values()
        ]
        return np.asarray(np.sum(parts, axis=0))

    def shortfall(self, requirement: Requirement, values: Values) -> NDArray[np.float64]:
        """(points,): by how much a requirement is missed, in units of what lies between SFT and RLHF; 0 where it holds."""
        end = self.ends[requirement.name]
        missed = requirement.bound(end.sft, end.rlhf) - values[requirement.name]
        unit = abs(end.rlhf - end.sft) or 1.0
        return np.maximum(missed if requirement.at_least else -missed, 0) / unit

    def shortfalls(self, values: Values) -> NDArray[np.float64]:
        """(points,): the requirement that is missed by most; all 0 without any."""
        missed = [self.shortfall(requirement, values) for requirement in self.requirements]
        return np.max(missed, axis=0) if missed else np.zeros(len(next(iter(values.values()))))

    def order(self, values: Values, alphas: Sequence[float], names: Sequence[str]) -> list[int]:
        """The points, best first: those that hold every requirement by their score, then the others by what they miss."""
        missed, score = self.shortfalls(values), self.score(values)
        return sorted(range(len(names)), key=lambda i: (missed[i], -score[i], alphas[i], names[i]))

    def in_words(self) -> str:
        """What decides among the merges that hold every requirement."""
        side = {"gain": "the largest share of RLHF's gain", "tax": "the largest share of what SFT has and RLHF lost"}
        told = [f"{side[s]} ({', '.join(names)})" for s, names in self.counted.items()]
        if len(told) == 2:
            return f"the knee: {' plus '.join(told)}, farthest above the straight line from SFT to RLHF"
        return told[0]


def rule(
    measures: Mapping[str, Measure],
    ends: Mapping[str, Corners],
    requirements: Sequence[Requirement],
    without: Collection[str] = (),
) -> Rule:
    """The rule for these measures and requirements.

    Args:
        measures: of the table.
        ends: the measures on SFT and RLHF.
        requirements: which all must hold.
        without: measures that do not count; they may be required.

    Raises:
        DataError: if a required measure is not known of both models, or RLHF moved no measure that has a direction.
    """
    for requirement in requirements:
        if requirement.name not in ends:
            hint = "measure it on SFT and RLHF, too"
            raise DataError(f"`{requirement.text}`: {requirement.name} is not known of both models", hint)
        requirement.bound(ends[requirement.name].sft, ends[requirement.name].rlhf)
    counting = {name: corner for name, corner in ends.items() if name not in without}
    found = {side: names for side, names in sides(measures, counting).items() if names}
    asked = {side for side, names in found.items() for r in requirements if r.name in names}
    counted = {side: names for side, names in found.items() if side not in asked} or found
    if not counted:
        raise DataError(
            "RLHF moved no measure that has a direction: there is nothing to choose by", "add a measure, or data"
        )
    return Rule(measures, ends, tuple(requirements), counted)
