"""Several processes of one command, by torchrun: the first one speaks."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from amatax.errors import AmataxError
from amatax.streaming.joining import Terminated, joined
from amatax.streaming.ranks import AGAIN, Ranks


@contextmanager
def one_voice() -> Iterator[Ranks]:
    """Join the other processes, if there are any; the first one tells an error, and the others end when it has."""
    with joined() as ranks:
        try:
            yield ranks
        except (AmataxError, KeyboardInterrupt) as error:
            from amatax.commands import INTERRUPTED, USER_FAULT

            if ranks.world == 1:
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which comes when the first process has ended
            if os.environ.get("AMATAX_DEBUG") == "1":
                traceback.print_exc()
            ranks.leave(error)
            interrupted = isinstance(error, KeyboardInterrupt)
            if ranks.speaks(patience=2 if interrupted else 10):
                _print(error)
                ranks.has_spoken()
            raise typer.Exit(INTERRUPTED if interrupted else USER_FAULT) from None


def _print(error: BaseException) -> None:
    from amatax.commands import print_error

    if isinstance(error, AmataxError):
        print_error(error)
        return
    why = "\ninterrupted"
    if isinstance(error, Terminated):
        why = "amatax: ended by SIGTERM, which torchrun sends to all ranks when one has died (its report says which)"
    print(f"{why}\n  -> {AGAIN}", file=sys.stderr)
