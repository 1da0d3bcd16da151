"""From intervals to verdicts: what is sure on the samples and of one sign in every seed; the rest is indistinguishable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from amatax.fitting.bootstrap import Interval

Side = Literal["above", "below", "open"]
Verdict = Literal["confirmed", "not confirmed", "indistinguishable"]


class Contrast(NamedTuple):
    """A number of which a claim says that it lies above zero.

    Attributes:
        interval: the mean over the seeds, with its paired bootstrap interval over the samples (95 %).
        seeds: each seed's own; one number where nothing is drawn.
    """

    interval: Interval
    seeds: tuple[float, ...]

    @property
    def side(self) -> Side:
        """Above or below zero if the whole interval is, and every seed; else open."""
        if self.interval.low > 0 and min(self.seeds) > 0:
            return "above"
        if self.interval.high < 0 and max(self.seeds) < 0:
            return "below"
        return "open"


def judge(contrasts: Sequence[Contrast]) -> Verdict:
    """Of a claim that says that all of them lie above zero.

    confirmed: they do. not confirmed: one of them surely lies below. indistinguishable: the data do not tell.

    Raises:
        ValueError: of none.
    """
    if not contrasts:
        raise ValueError("a claim of nothing")
    sides = [contrast.side for contrast in contrasts]
    if "below" in sides:
        return "not confirmed"
    return "confirmed" if all(side == "above" for side in sides) else "indistinguishable"


def judge_any_apart(contrasts: Sequence[Contrast]) -> Verdict:
    """Of a claim that says that some of them differ from zero, whichever way: it can be confirmed, or be left open.

    The intervals must allow for as many looks.
    """
    return "confirmed" if any(contrast.side != "open" for contrast in contrasts) else "indistinguishable"
