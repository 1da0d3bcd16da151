"""Several processes of one job, as torchrun starts them: how they compare what they know, and how one's fault ends all.

They talk through the key-value store that torchrun has for them anyway. No collective operation is used, so there is no backend to
choose, and whoever waits can be interrupted and hears that another has failed, or is gone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar, cast

from amatax.errors import AmataxError
from amatax.streaming.processes import local_rank
from amatax.streaming.rank_errors import error_to_json, joint_error, left_error

T = TypeVar("T")
BEAT = 0.5  # seconds between two signs of life, and between two looks at what the others say
SILENT = 60.0  # seconds without one, and a rank that is waited for is taken for dead
START = timedelta(minutes=10)  # until every rank has imported torch
VISIBLE = 60.0  # seconds until what one machine writes shows on another one, at most (NFS remembers names for so long)
FAILED = "failed"  # a key: a rank has failed, and waits for the others to stop
LEFT = "left"  # one has gone, and this is why
TOLD = "told"  # the user has been told
AGAIN = "run the same command again, with as many processes as you like: what was finished is kept"


class Stopped(Exception):
    """Another rank has failed: nothing more needs to be done here."""


class Ranks:
    """This process among the others of its job; alone, every method does the plain thing.

    Values that are exchanged are such as JSON has: whatever listens at the store's port, nothing is unpickled.

    Attributes:
        rank: the number of this process.
        world: how many there are.
        idle: called now and then while this one waits for others.
    """

    def __init__(self, store: Any = None, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self._store = rank, world, store
        self.idle: Callable[[], None] = lambda: None
        self._step = self._read = 0
        self._failed = False
        self._left: dict[str, Any] | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()

    # what is agreed upon

    def gather(self, value: Any) -> list[Any]:
        """What every rank has, by rank.

        Raises:
            AmataxError: if a rank is gone.
            KeyboardInterrupt: if one was interrupted.
        """
        if self.world == 1:
            return [value]
        self._step += 1
        keys = [f"{self._step}/{rank}" for rank in range(self.world)]
        self._asked(lambda: self._store.set(keys[self.rank], json.dumps(value)))
        heard: dict[int, tuple[bytes, float]] = {}
        pause, looked = 0.005, time.monotonic()
        while not self._asked(lambda: self._store.check(keys)):
            self._gone()
            if time.monotonic() - looked > BEAT:
                looked = time.monotonic()
                self._asked(lambda: self._listen(keys, heard))
            self.idle()
            time.sleep(pause)
            pause = min(0.02, 1.5 * pause)
        return [json.loads(text) for text in self._asked(lambda: [self._store.get(key) for key in keys])]

    def each(self, step: Callable[[], T], *, named: bool = True) -> T:
        """Do a step on every rank; all go on when all have done it, and what one raises, all raise.

        Args:
            step: what to do.
            named: an error says which rank it is from.

        Raises:
            AmataxError: what the ranks raised, in one error that is the same on each of them.
        """
        if self.world == 1:
            return step()
        cause: Exception | None = None
        told: dict[str, Any] | None = None
        try:
            value = step()
        except Stopped:
            pass
        except Exception as error:
            cause = error
            if isinstance(error, AmataxError | OSError) or not self._asked(lambda: self._store.check([FAILED])):
                told = error_to_json(error)  # what breaks after another has failed is no fault of its own
            self._asked(lambda: self._store.set(FAILED, ""))
        outcomes = self.gather(told)
        if any(outcomes):
            raise joint_error(outcomes, named=named) from cause
        return value

    def first(self, step: Callable[[], T]) -> T | None:
        """Do a step on the first rank alone, while the others wait; they get None, or raise what it raises."""
        return self.each(step if self.rank == 0 else lambda: None, named=False)

    def in_turn(self, step: Callable[[], T]) -> T:
        """Do a step on the first rank, then on one rank of each machine, then on the others: what one fetches, the next ones find."""
        if self.world == 1:
            return step()
        found = self.first(step)
        mine = self.rank > 0 and local_rank() == 0
        found = self.each(step if mine else lambda: found)
        mine = self.rank > 0 and local_rank() > 0
        return cast(T, self.each(step if mine else lambda: found))

    def from_first(self, value: Any) -> Any:
        """What the first rank has, for all of them."""
        return self.gather(value if self.rank == 0 else None)[0]

    # what goes on meanwhile

    def look(self) -> None:
        """Whether to go on; to be called now and then during a step.

        Raises:
            Stopped: another rank has failed; `each` says with what.
            AmataxError, KeyboardInterrupt: as of `gather`.
        """
        self._gone()
        if self._failed:
            raise Stopped

    def advance(self, n: int) -> None:
        """So many more bytes were read here (from any thread); the others hear of it."""
        with self._lock:
            self._read += n

    def read_by_others(self) -> int:
        """Bytes that the other ranks have said they read."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        beats = self._asked(lambda: [self._beat_of(rank) for rank in others])
        return sum(int(beat.split()[1]) for beat in beats if beat)

    # the end

    def speaks(self, patience: float) -> bool:
        """Whether this rank is to tell the user why it ends: the first one, or if that does not come to it, one of the others."""
        end = time.monotonic() + patience
        while self.rank > 0 and time.monotonic() < end:
            if self._quietly(lambda: self._store.check([TOLD])):
                return False
            time.sleep(0.02)
        return self.rank == 0 or self._quietly(lambda: self._store.add("speaker", 1)) in (1, None)

    def has_spoken(self) -> None:
        """The user has been told."""
        self._quietly(lambda: self._store.set(TOLD, ""))

    def leave(self, error: BaseException) -> None:
        """Let those who wait for this rank know that it will not come."""
        told = {} if isinstance(error, KeyboardInterrupt) else {**error_to_json(error), "rank": self.rank}
        if not self._quietly(lambda: self._store.check([LEFT])):  # the first word counts
            self._quietly(lambda: self._store.set(LEFT, json.dumps(told)))

    def _part(self, patience: float) -> None:
        """The last that is said; the first rank stays until all have said it."""
        keys = [f"parted/{rank}" for rank in range(self.world)]
        self._quietly(lambda: self._store.set(keys[self.rank], ""))
        end = time.monotonic() + patience
        while self.rank == 0 and time.monotonic() < end and self._quietly(lambda: self._store.check(keys)) is False:
            time.sleep(0.01)

    def wait_gone(self, patience: float) -> None:
        """Whether another has left, who may be about to say so.

        Raises:
            AmataxError, KeyboardInterrupt: as of `gather`.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self._gone()
            time.sleep(0.05)

    def _gone(self) -> None:
        if self._left is not None:
            raise left_error(self._left) if self._left else KeyboardInterrupt

    def _listen(self, keys: Sequence[str], heard: dict[int, tuple[bytes, float]]) -> None:
        """Is every rank that is waited for still there?"""
        now = time.monotonic()
        for rank, key in enumerate(keys):
            if self._store.check([key]):
                continue
            beat = self._beat_of(rank)
            last, since = heard.setdefault(rank, (beat, now))
            if beat != last:
                heard[rank] = beat, now
            elif now - since > (SILENT if beat else START.total_seconds()):
                which = f"rank {rank} has not been heard of for {now - since:.0f} s"
                raise AmataxError(f"{which}: its process, or its machine, is gone", AGAIN)

    def _beat_of(self, rank: int) -> bytes:
        key = f"beat/{rank}"
        return bytes(self._store.get(key)) if self._store.check([key]) else b""

    def _beat(self) -> None:
        """In a thread: a sign of life, and a look at what the others say."""
        for number in count():
            try:
                self._store.set(f"beat/{self.rank}", f"{number} {self._read}")
                self._failed = self._failed or self._store.check([FAILED])
                if self._left is None and self._store.check([LEFT]):
                    self._left = json.loads(self._store.get(LEFT))
            except RuntimeError:
                self._left = error_to_json(_lost()) if self._left is None else self._left
            if self._ended.wait(BEAT):
                return

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except RuntimeError as error:  # torch's DistError
            raise _lost() from error

    def _quietly(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except RuntimeError:
            return None


ALONE = Ranks()


def shown(look: Callable[[], T]) -> T:
    """What `look` finds of another machine's writing; asked again, for a while, as long as that is nothing."""
    end = time.monotonic() + VISIBLE
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def share_out(work: Mapping[str, int], parts: int) -> list[list[str]]:
    """Names in as many parts of about the same work: the largest first, to the part that has least.

    The same for every rank that asks.
    """
    shares: list[list[str]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for name in sorted(work, key=lambda name: (-work[name], name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += work[name]
    return shares


def _lost() -> AmataxError:
    return AmataxError("the connection to the first process is lost: it, its machine or its torchrun is gone", AGAIN)
