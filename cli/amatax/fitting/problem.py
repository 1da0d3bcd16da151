"""What a fit can ask: the likelihood, or the divergence from SFT, of a part of the data at some ratios."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from amatax.errors import NonFiniteError
from amatax.fitting.few import balanced
from amatax.fitting.likelihood import Measured, measure
from amatax.fitting.merged_model import MergedModel
from amatax.fitting.optimum import Function
from amatax.fitting.passes import Passes
from amatax.fitting.samples import Sample
from amatax.fitting.sampling import Watching
from amatax.fitting.variables import Variables, exact_mean


@dataclass(frozen=True)
class Keep:
    """What a tax-aware fit keeps of SFT.

    Attributes:
        train, held: samples whose responses SFT gives, or should.
        most: bound of the mean KL(SFT || merged) on `train`, nats per response token.
        weight: or: the KL is added to the NLL, times this.
    """

    train: Sequence[Sample]
    held: Sequence[Sample]
    most: float | None = None
    weight: float | None = None


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
        """One pass over a part at the unknowns' values, or, with `end` 0 or 1, at one of the two models.

        Raises:
            NonFiniteError: if a likelihood is no number.
        """

        def run() -> Measured:
            self.made += gradient
            with torch.no_grad():
                self.merged.variables.copy_(torch.tensor(list(values), dtype=torch.float64))
            self.watcher.start(len(self.parts[part]))
            try:
                return measure(
                    self.merged,
                    self.parts[part],
                    None if end is None else self.merged.everywhere(end),
                    gradient=gradient,
                    divergence=part.startswith("keep"),
                    batch_tokens=self.batch_tokens,
                    advance=self._advance,
                )
            except NonFiniteError as error:
                model = "the merged model" if end is None else f"{where} alone"
                raise NonFiniteError(f"of {model}, {error.message}", error.hint) from None

        if part.startswith("keep") and end == 0:  # SFT from itself
            tokens = torch.tensor([len(s.ids) - s.start for s in self.parts[part]], dtype=torch.float64)
            return Measured(torch.zeros_like(tokens), tokens, None)
        where = list(values) if end is None else "sft" if end == 0 else "rlhf"
        return self.journal.measured(part, where, gradient, run)

    def few(self, part: str, count: int, seed: int) -> str:
        """A part of its own, of samples that agree with all of `part` wherever that was asked until now; its name."""
        samples, asked = self.parts[part], self.journal.asked.get(part, {})
        tokens = [float(len(sample.ids) - sample.start) for sample in samples]
        chosen = balanced([tokens, *(found.sums.tolist() for found in asked.values())], count, seed)
        if len(chosen) == len(samples):
            return part
        name = f"{part}: few {hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}"
        self.parts[name] = [samples[i] for i in chosen]
        return name

    def objective(
        self, part: str, kept: str = "keep", weight: float | None = None, *, gradient: bool = True
    ) -> Function:
        """values -> (mean, gradient) over a part, plus the divergence on the part `kept` times `weight`; without, gradients are zero.

        At a held mean the values are taken as they would be written: what a descent ends at is measured then.
        """

        def evaluate(values: list[float]) -> tuple[float, list[float]]:
            values = self.written(values)
            value, slope = 0.0, [0.0] * len(values)
            for one, times in ((part, 1.0), (kept, weight)):
                if times is not None:
                    found = self.measured(one, values, gradient=gradient)
                    value += times * found.mean
                    if gradient:
                        slope = [a + times * b for a, b in zip(slope, found.slope(), strict=True)]
            return value, slope

        return evaluate

    def written(self, values: list[float]) -> list[float]:
        """The values as a recipe says them: at a held mean, rounded so that the mean is kept to the last digit."""
        return values if self.alpha is None else exact_mean(values, self.variables.shares, self.alpha)

    @property
    def precise(self) -> bool:
        """Passes tell small differences: they are made in float32 or wider."""
        return self.merged.compute.itemsize >= torch.float32.itemsize

    def asked(self, part: str) -> list[tuple[list[float], Measured]]:
        """Every point at which a part was measured, and what was found."""
        known = self.journal.asked.get(part, {})
        return [(list(point), found) for point, found in known.items() if not isinstance(point, str)]

    def mean_ratio(self, values: Sequence[float]) -> float:
        """The mean that alpha is."""
        return sum(share * value for share, value in zip(self.shares, values, strict=True))

    def prompts(self, part: str) -> list[str]:
        """The prompt of each sample."""
        return [sample.prompt for sample in self.parts[part]]

    def _advance(self, samples: int) -> None:
        self.watcher.advance(samples)
        self.watcher.wait()
