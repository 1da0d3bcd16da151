"""A Plan -> a model folder, shard by shard; a rerun continues where the last one stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amatax.errors import OutputError
from amatax.planning.plan import Plan
from amatax.streaming.stream import Streamer
from amatax.writing.card import card
from amatax.writing.record import shard_entry, write_record
from amatax.writing.shards import write_shard
from amatax.writing.side_files import write_side_files
from amatax.writing.workplace import Carrier, Workplace, workplace

LOOK = 0.2  # seconds between two looks at a shard that travels


def write_model(
    plan: Plan,
    output: Path,
    streamer: Callable[[], Streamer],
    *,
    overwrite: bool = False,
    resumed: Callable[[Workplace], None] = lambda work: None,
    wait: Callable[[], None] = lambda: None,
    carrier: Carrier | None = None,
) -> list[dict[str, Any]]:
    """Merge into `<output>.unfinished`, then rename it.

    Args:
        plan: what to do.
        output: the folder that will stand there, whole.
        streamer: makes the workers once the folder is ours.
        overwrite: replace what stands at `output`, and unfinished work of another merge.
        resumed: told what an earlier run left, before the work begins.
        wait: called now and then while the workers are at it.
        carrier: takes each shard as soon as it is finished, and everything else at the end; nothing is left at `output` then.

    Returns:
        A journal entry for each shard, in order.

    Raises:
        OutputError, InputChangedError, NonFiniteError: finished shards are kept for the next run.
    """
    output = output.resolve()
    try:
        with workplace(plan, output) as work:
            work.begin(overwrite=overwrite, carrier=carrier)
            resumed(work)
            if carrier is not None:
                work.carry(carrier)
            _write_shards(work, plan, streamer, wait, carrier)
            entries = [work.done[shard.file] for shard in plan.shards]
            write_side_files(plan, work.folder)
            loaded_by = plan.checkpoints[plan.recipe.output.config].loaded_by
            text = card(plan.recipe, plan.ratios, plan.blocks, loaded_by)
            (work.folder / "README.md").write_text(text, encoding="utf-8")
            write_record(work.folder, plan, entries)
            if carrier is not None:
                carrier.finish(work.folder)
                shutil.rmtree(work.folder)
            else:
                work.make_whole(output, overwrite=overwrite)
            return entries
    except OSError as error:
        where = error.filename or output
        raise OutputError(
            f"{where}: {error.strerror}", "check the disk and the permissions, then run it again"
        ) from error


def _write_shards(
    work: Workplace, plan: Plan, streamer: Callable[[], Streamer], wait: Callable[[], None], carrier: Carrier | None
) -> None:
    """Those that the journal does not have; with a carrier one travels while the next one is merged, and no third is ever here."""
    workers: Streamer | None = None
    travelling: Future[None] | None = None

    def watch() -> None:
        """Beside the usual: a shard that cannot travel ends the merge at once."""
        wait()
        if travelling is not None and travelling.done():
            travelling.result()

    def arrive() -> None:
        while travelling is not None and not travelling.done():
            wait()
            wait_for([travelling], timeout=LOOK)

    with _one_thread() as thread:
        for shard in plan.shards:
            if shard.file in work.done:
                continue
            workers = workers or streamer()
            partial = work.folder / f"{shard.file}.partial"
            results = write_shard(partial, shard, plan, workers, watch)
            arrive()
            work.finish_shard(partial, shard_entry(shard.file, shard.nbytes, plan, results))
            watch()
            if carrier is not None:
                travelling = thread.submit(work.carry, carrier)
        arrive()
        watch()


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread beside this one; after Ctrl-C nobody waits for it."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown()
        raise
    pool.shutdown()
