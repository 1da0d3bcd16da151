"""How the processes of one job find each other, and part: torchrun's store, signs of life, SIGTERM as an exception."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from amatax.errors import AmataxError
from amatax.streaming.importing import importing_torch
from amatax.streaming.processes import rank_and_world
from amatax.streaming.ranks import ALONE, START, Ranks

FAREWELL = 5.0  # seconds that the first process, which may hold the store, waits for the others to end
_joins = count()  # a process may join more than once, and the store keeps its keys
_joined: list[Ranks] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, which torchrun sends to every rank when one has died."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun has started; alone (and without torch) if it has started none.

    Raises:
        AmataxError: if the store cannot be reached, or there is no such number among so many processes.
    """
    rank, world = rank_and_world()
    if world < 2 or _joined:
        yield _joined[0] if _joined else ALONE
        return
    if not 0 <= rank < world:
        message = f"RANK is {rank}, and WORLD_SIZE {world}: the processes are numbered from 0 to {world - 1}"
        raise AmataxError(message, "start them with torchrun, which numbers them, or set RANK and WORLD_SIZE alike")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the processes of a machine share its cores
    with importing_torch():
        import torch.distributed as dist
    try:
        store = next(dist.rendezvous("env://", timeout=START))[0]
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        hint = "start it with torchrun, or unset WORLD_SIZE to merge with this process alone"
        raise AmataxError(
            f"{world} processes are announced (WORLD_SIZE), and cannot be joined: {reason}", hint
        ) from None
    with _terminated(), among(dist.PrefixStore(f"amatax/{next(_joins)}", store), rank, world) as ranks:
        _joined.append(ranks)
        try:
            yield ranks
        finally:
            _joined.clear()


@contextmanager
def among(store: Any, rank: int, world: int) -> Iterator[Ranks]:
    """This process among those that have a store of torch.distributed in common."""
    ranks = Ranks(store, rank, world)
    beats = threading.Thread(target=ranks._beat, daemon=True)
    beats.start()
    wait = FAREWELL
    try:
        yield ranks
    except BaseException as error:
        wait = 0.0 if isinstance(error, KeyboardInterrupt) else FAREWELL
        ranks.leave(error)
        raise
    finally:
        ranks._ended.set()
        beats.join()
        ranks._part(wait)


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM is raised as an exception, once, so that a rank says why it ends."""
    raised = False

    def stop(*_: object) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)
