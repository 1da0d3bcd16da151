"""What a user asks of a merge: `abilities >= 0.98*sft`, `reward >= rlhf - 0.05`, `kl <= 0.1`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from amatax.errors import DataError
from amatax.evaluation.results import Measure
from amatax.recipes.loading import nearest

FORMS = "write `NAME >= 0.98*sft`, `NAME >= 0.9*rlhf`, `NAME <= sft + 0.05` or `NAME <= 0.1`"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
WHOLE = re.compile(r"\s*(?P<name>.+?)\s*(?P<sign>>=|<=)\s*(?P<bound>.+?)\s*", re.DOTALL)
BOUND = re.compile(
    rf"(?P<number>{NUMBER})"
    rf"|(?:(?P<factor>{NUMBER})\s*\*\s*)?(?P<model>[A-Za-z]\w*)(?:\s*(?P<plus>[-+])\s*(?P<offset>\d*\.?\d+(?:[eE][-+]?\d+)?))?"
)


class Requirement(NamedTuple):
    """A bound on a measure: factor * (its value on the model) + offset, or offset alone.

    Attributes:
        text: as it was written, with single spaces.
        name: of the measure.
        at_least: the measure may not be less; else it may not be more.
        model: `sft`, `rlhf`, or "" for a plain number.
        factor, offset: see above.
    """

    text: str
    name: str
    at_least: bool
    model: str
    factor: float
    offset: float

    def bound(self, sft: float, rlhf: float) -> float:
        """The number that the measure is held against.

        Args:
            sft, rlhf: its value on the two models.

        Raises:
            DataError: for a share of a negative number, which would ask for more than all of it.
        """
        if not self.model:
            return self.offset
        of = sft if self.model == "sft" else rlhf
        if of < 0 and self.factor != 1:
            hint = f"write the distance, such as `{self.name} {'>=' if self.at_least else '<='} {self.model} - 0.1`"
            raise DataError(
                f"`{self.text}`: {self.name} is {of:.4g} on {self.model}, and a share of a negative number says nothing",
                hint,
            )
        return self.factor * of + self.offset


def parse_requirement(text: str, measures: Mapping[str, Measure]) -> Requirement:
    """Read one requirement, before anything is measured.

    Raises:
        DataError: if it is none, names no measure, or asks for a measure to be worse.
    """
    whole = WHOLE.fullmatch(text)
    bound = BOUND.fullmatch(whole["bound"]) if whole else None
    if whole is None or bound is None:
        raise DataError(f"`{text}` is no requirement", FORMS)
    name, at_least = whole["name"], whole["sign"] == ">="
    if name not in measures:
        raise DataError(f"`{text}`: there is no measure `{name}`", nearest(name, list(measures)))
    model = (bound["model"] or "").lower()
    if model not in ("", "sft", "rlhf"):
        raise DataError(f"`{text}`: a bound is a number, or a share of sft or rlhf, not of `{bound['model']}`", FORMS)
    if measures[name].higher is not None and measures[name].higher != at_least:
        better, sign = ("more", ">=") if measures[name].higher else ("less", "<=")
        raise DataError(
            f"`{text}` asks for a worse {name}: {better} of it is better", f"turn the sign: `{name} {sign} ...`"
        )
    factor = float(bound["factor"] or 1)
    offset = float(bound["number"] or 0) if not model else float((bound["plus"] or "") + (bound["offset"] or "0"))
    return Requirement(" ".join(text.split()), name, at_least, model, factor, offset)
