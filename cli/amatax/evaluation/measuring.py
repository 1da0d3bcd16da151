"""Measuring points of a sweep: one live model, every measure at every point, each written down as it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from amatax.errors import AmataxError
from amatax.evaluation.choice import check_shares
from amatax.evaluation.journal import Journal, Known
from amatax.evaluation.points import Wanted
from amatax.evaluation.requirements import Requirement
from amatax.evaluation.results import Measure, Measured, Point, Results
from amatax.fitting.sampling import Watching
from amatax.planning.plan import Plan, make_plan

if TYPE_CHECKING:
    import torch

    from amatax.evaluation.live import LiveModel

Tick = Callable[[int], None]  # told the samples that are done since it was told last


class Task(Protocol):
    """Something that is measured of a model."""

    @property
    def measure(self) -> Measure:
        """What comes out."""

    @property
    def samples(self) -> int:
        """How many it takes."""

    @property
    def run(self) -> Callable[[Any, Tick], Measured]:
        """Of a transformers model in evaluation mode, on its device."""

    @property
    def names(self) -> Sequence[str]:
        """Of the samples, where they are known beforehand."""


@dataclass(frozen=True)
class Opening:
    """How the live model is opened.

    Attributes:
        device: where it computes.
        dtype: that it computes in; the output's by default.
        threads: that merge; by default the cores, up to a point.
        trust_remote_code: let transformers run the checkpoint's own code.
        beside: bytes of other weights that the measures load.
        opened: told the live model, once it is there.
    """

    device: torch.device
    dtype: torch.dtype | None
    threads: int | None
    trust_remote_code: bool
    beside: int = 0
    opened: Callable[[LiveModel], None] = lambda live: None


class Measuring:
    """Measures what the journal does not know; the models are loaded when the first merge is needed, and stay.

    Args:
        plan: of some merge of the models, its files here.
        tasks: what is measured.
        journal: of the sweep.
        opening: of the live model.
        watcher: told the samples that are to be measured, and those that are done.
        requirements: what the chosen merge must hold; what they need of SFT and RLHF is looked at once those are measured.

    Attributes:
        runs: how many (point, measure) were measured.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[Task],
        journal: Journal,
        opening: Opening,
        watcher: Watching,
        requirements: Sequence[Requirement] = (),
    ) -> None:
        self.runs, self._requirements = 0, requirements
        self._plan, self._tasks, self._journal, self._opening, self._watcher = plan, tasks, journal, opening, watcher
        self._live: LiveModel | None = None
        self._weights: dict[str, str] = {}  # by point: what its weights are

    def measure(self, points: Sequence[Wanted], later: int = 0) -> Results:
        """Every task at every point, in order; points of the same weights are measured once.

        Args:
            points: each with its recipe.
            later: samples that will be measured after these, for the progress.

        Raises:
            OutputError: if the journal has another merge of a point's name.
            AmataxError: see amatax.errors.
        """
        from amatax.evaluation.answering import fingerprint
        from amatax.fitting.memory import memory_hint

        for point in points:
            assert point.recipe is not None
            self._journal.fact(f"point {point.name}", point.recipe.merge.model_dump(mode="json"))
            self._weights[point.name] = weights_of(make_plan(point.recipe))
        known = {
            (self._weights[name], measure): found
            for (name, measure), found in self._journal.measured.items()
            if name in self._weights
        }
        sizes = {task.measure.name: task.samples for task in self._tasks}
        left = {(self._weights[point.name], measure) for point in points for measure in sizes} - known.keys()
        unchanged = b""
        for point in points:
            weights = self._weights[point.name]
            pending = [task for task in self._tasks if (point.name, task.measure.name) not in self._journal.measured]
            live = None
            if any((weights, task.measure.name) not in known for task in pending):
                live = self._opened(sum(sizes[measure] for _, measure in left) + later)
                assert point.recipe is not None
                live.set(point.recipe)
                unchanged = fingerprint(live.model)
            for task in pending:
                name = task.measure.name
                if (weights, name) not in known:
                    assert live is not None
                    hint = "take a smaller --batch-size: the same command continues with what is done"
                    with memory_hint(f"measuring {name} at {point.name} on {self._opening.device}", hint):
                        found = _checked(task, task.run(live.model.eval(), self._tick), point.name)
                    if fingerprint(live.model) != unchanged:
                        raise AmataxError(
                            f"{name} at {point.name} has written to the model's weights",
                            "mend the measure, or the model's own code; the same command continues with what is done",
                        )
                    known[weights, name] = found
                    self.runs += 1
                self._journal.add(point.name, name, known[weights, name])
            if point.kind == "rlhf":
                check_ends(points, self._tasks, self._journal, self._requirements)
        return _results(points, self._tasks, self._journal)

    def _opened(self, samples: int) -> LiveModel:
        """The live model; with the first one the counting of samples begins."""
        from amatax.evaluation.live import LiveModel

        if self._live is None:
            how = self._opening
            self._watcher.say("loading the models")
            self._live = LiveModel.open(
                self._plan,
                how.device,
                dtype=how.dtype,
                trust_remote_code=how.trust_remote_code,
                threads=how.threads,
                beside=how.beside,
            )
            how.opened(self._live)
            self._live.check()
            self._watcher.start(samples)
        return self._live

    def _tick(self, samples: int) -> None:
        self._watcher.advance(samples)
        self._watcher.wait()


def check_ends(
    points: Sequence[Wanted], tasks: Sequence[Task], journal: Known, requirements: Sequence[Requirement]
) -> None:
    """Whether the requirements say something, once SFT and RLHF are measured.

    Raises:
        DataError: see amatax.evaluation.choice.check_shares.
    """
    ends = [point for point in points if point.kind in ("sft", "rlhf")]
    if all((point.name, task.measure.name) in journal.measured for point in ends for task in tasks):
        check_shares(_results(ends, tasks, journal), requirements)


def _results(points: Sequence[Wanted], tasks: Sequence[Task], journal: Known) -> Results:
    """The table, from the journal alone."""
    names = [task.measure.name for task in tasks]
    table = [
        Point(point.name, point.kind, point.alpha, point.ratios, {n: journal.measured[point.name, n] for n in names})
        for point in points
    ]
    return Results({task.measure.name: task.measure for task in tasks}, tuple(table))


def weights_of(plan: Plan) -> str:
    """The same for two merges of the same weights, whatever they are called."""
    merge = [plan.recipe.merge.method, plan.recipe.merge.options]
    made = [(t.name, t.copy_of or [*merge, t.ratio]) for t in plan.tensors.values()]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _checked(task: Task, found: Measured, point: str) -> Measured:
    """What a task gave, if it can be a measure's.

    Raises:
        AmataxError: for sums of another shape than samples.
    """
    if found.sums.ndim != 2 or len(found.sums) != len(found.samples):
        raise AmataxError(
            f"{task.measure.name} at {point}: sums of shape {found.sums.shape} for {len(found.samples)} samples",
            "a measure gives (samples, columns)",
        )
    return found
