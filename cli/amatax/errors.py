"""Every error that is not a bug in amatax.

AmataxError                 one message, one next step; the command line exits with 2
├── FaultsError             several faults, all found before any work
│   ├── RecipeError         the recipe's text: keys, types, values
│   ├── PlanError           the recipe against the checkpoints and the disk
│   ├── AdapterError        an adapter that cannot be used, or not on this model
│   └── MeasureError        measures that cannot be taken: their options, or their data
├── CheckpointError         an input folder or file that cannot be read as a checkpoint
│   └── LoneAdapterError    an adapter, named where a whole model is wanted
├── HubError                the Hub said no, or could not be reached
├── InputChangedError       an input changed under a merge, or since one
├── NonFiniteError          NaN or infinity in an input, or a value that overflows the output dtype
├── DataError               prompts, responses or rewards that cannot be used, with their lines
├── OutputError             the output folder cannot be written, is taken, or is not what was recorded
└── MissingExtraError       an optional library is not installed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AmataxError(Exception):
    """An error the user can act on.

    Args:
        message: what is wrong, naming the file, tensor or recipe line.
        hint: the next step, a sentence or a command; empty if the message already says it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, where it stands, and what to do about it."""

    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  -> {self.hint}" if self.hint else text


class FaultsError(AmataxError):
    """All faults that one stage found, at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(map(str, self.faults)))


class RecipeError(FaultsError):
    """The recipe's text is wrong."""


class PlanError(FaultsError):
    """The recipe does not fit the checkpoints, or the result does not fit the disk."""


class AdapterError(FaultsError):
    """An adapter cannot be used, or does not fit the model."""


class MeasureError(FaultsError):
    """Measures cannot be taken: unknown kinds or options, data that do not fit, a library that is missing."""


class CheckpointError(AmataxError):
    """An input cannot be read as a checkpoint."""


class LoneAdapterError(CheckpointError):
    """An adapter stands where a whole model is wanted."""


class HubError(AmataxError):
    """The Hub refused, or could not be reached."""


class InputChangedError(AmataxError):
    """An input file is no longer what it was."""


class NonFiniteError(AmataxError):
    """NaN or infinity where a number is needed."""


class DataError(AmataxError):
    """Prompts, responses or rewards cannot be used."""


class OutputError(AmataxError):
    """The output folder cannot be written, is taken, or is damaged."""


class MissingExtraError(AmataxError):
    """An optional library is needed and not installed."""
