"""Several processes of one merge: do they mean the same one, and who shows what."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from amatax import __version__
from amatax.api.common import Watcher
from amatax.errors import Fault, PlanError
from amatax.planning.plan import Plan
from amatax.streaming.ranks import BEAT, Ranks

SHOWN = 5  # differences of a rank
SAME = "give every rank the same command, with the same recipe and files: on a file system that all machines share"


class RanksWatcher(Watcher):
    """The first rank's watcher sees what all of them read; every rank looks whether it should go on.

    Args:
        watcher: of this process.
        ranks: it among the others.
    """

    def __init__(self, watcher: Watcher, ranks: Ranks) -> None:
        self._watcher, self._ranks = watcher, ranks
        self._of_others = 0
        self._shown = 0.0

    def start(self, total: int) -> None:
        self._watcher.start(total)
        self._ranks.idle = self._show

    def advance(self, n: int) -> None:
        self._ranks.advance(n)
        self._watcher.advance(n)

    def say(self, text: str) -> None:
        if self._ranks.rank == 0:
            self._watcher.say(text)

    def wait(self) -> None:
        self._ranks.look()
        self._show()

    def _show(self) -> None:
        if self._ranks.rank > 0:
            return
        if time.monotonic() - self._shown > BEAT:
            self._shown = time.monotonic()
            read = self._ranks.read_by_others()
            self._watcher.advance(read - self._of_others)
            self._of_others = read
        self._watcher.wait()


def check_same(ranks: Ranks, planned: Plan, **options: Any) -> None:
    """Compare what the ranks are about to do.

    Args:
        planned: what this one has planned.
        options: what else it was asked for.

    Raises:
        PlanError: naming each rank that differs from the first, and in what.
    """
    if ranks.world == 1:
        return
    import socket

    import torch

    seen = ranks.gather(
        {
            "host": socket.gethostname(),
            "amatax": __version__,
            "torch": torch.__version__.partition("+")[0],
            "recipe": planned.recipe.model_dump(mode="json", exclude={"output": {"path"}, "record": True}),
            "options": options,
            "inputs": {
                role: {
                    name: {"size": file.size, "header": file.header}
                    | ({"time": [file.mtime_ns, file.ctime_ns]} if commit is None else {})
                    for name, file, commit in checkpoint.inputs
                }
                for role, checkpoint in planned.checkpoints.items()
            },
            "identity": planned.identity,
        }
    )
    faults = []
    for rank, other in enumerate(seen):
        differ = [text for text in _differences(seen[0], other) if not text.startswith("host: ")]
        differ = [text for text in differ if not text.startswith("identity: ")] or differ
        if differ:
            more = [f"and {len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
            told = (
                f"rank {rank} ({other['host']}) has something else than rank 0: {'; '.join([*differ[:SHOWN], *more])}"
            )
            faults.append(Fault(told, hint=SAME))
    if faults:
        raise PlanError(faults)


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Where two values of JSON differ: `path: the other's instead of the one's`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif one != other:
        yield f"{path}: {_short(other)} instead of {_short(one)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
