"""What a fit can ask: the likelihood, or the divergence from SFT, of a part of the data at some ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Function
from amatax.fitting.passes import Passes
from amatax.fitting.samples import Sample
from amatax.fitting.sampling import Watching
from amatax.fitting.variables import Variables, exact_mean


@dataclass
class Problem:
    """Both models, the parts of the data, and the passes that were made over them.

    Attributes:
        merged: both models, with one unknown for each of the variables.
        variables: the unknowns and how they enter the mean.
        parts: samples by name; of those that begin with "keep" the divergence from SFT is measured, of the others -log p.
        journal: of earlier passes.
        batch_tokens: tokens of a batch.
        watcher: told the samples of a pass, and those that are done.
        alpha: the mean that is held, if one is.
        made: passes with gradients so far.
    """

    merged: MergedModel
    variables: Variables
    parts: dict[str, Sequence[Sample]]
    journal: Passes
    batch_tokens: int
    watcher: Watching
    alpha: float | None = None
    made: int = 0
    shares: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.shares = [float(share) for share in self.variables.shares]

    def measured(
        self, part: str, values: Sequence[float], *, gradient: bool = False, end: float | None = None
    ) -> Measured:
        """One pass over a part at the unknowns' values, or, with `end` 0 or 1, at one of the two models."""

        def run() -> Measured:
            self.made += gradient
            with torch.no_grad():
                self.merged.variables.copy_(torch.tensor(list(values), dtype=torch.float64))
            self.watcher.start(len(self.parts[part]))
            return measure(
                self.merged,
                self.parts[part],
                None if end is None else self.merged.everywhere(end),
                gradient=gradient,
                divergence=part.startswith("keep"),
                batch_tokens=self.batch_tokens,
                advance=self._advance,
            )

        if end is not None:
            return self.journal.measured(f"{part} at", [end], gradient, run)
        return self.journal.measured(part, list(values), gradient, run)

    def objective(self, part: str, kept: str = "keep", weight: float | None = None) -> Function:
        """values -> (mean, gradient) over a part, plus the divergence on the part `kept` times `weight`.

        At a held mean the values are taken as they would be written: what a descent ends at is measured then.
        """

        def evaluate(values: list[float]) -> tuple[float, list[float]]:
            if self.alpha is not None:
                values = exact_mean(values, self.variables.shares, self.alpha)
            found = self.measured(part, values, gradient=True)
            if weight is None:
                return found.mean, found.slope()
            tax = self.measured(kept, values, gradient=True)
            slope = [one + weight * other for one, other in zip(found.slope(), tax.slope(), strict=True)]
            return found.mean + weight * tax.mean, slope

        return evaluate

    def mean_ratio(self, values: Sequence[float]) -> float:
        """The mean that alpha is."""
        return sum(share * value for share, value in zip(self.shares, values, strict=True))

    def prompts(self, part: str) -> list[str]:
        """The prompt of each sample."""
        return [sample.prompt for sample in self.parts[part]]

    def _advance(self, samples: int) -> None:
        self.watcher.advance(samples)
        self.watcher.wait()
