"""A Plan -> a model folder, shard by shard, by one process or several; a rerun continues where the last one stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from amatax.errors import OutputError
from amatax.planning.layout import Shard
from amatax.planning.plan import Plan
from amatax.streaming.ranks import ALONE, Ranks, share_out
from amatax.streaming.stream import Streamer
from amatax.writing.card import card
from amatax.writing.record import shard_entry, write_record
from amatax.writing.shards import write_shard
from amatax.writing.side_files import write_side_files
from amatax.writing.workplace import Carrier, Workplace, shared_workplace, workplace

LOOK = 0.2  # seconds between two looks at a shard that travels


def write_model(
    plan: Plan,
    output: Path,
    streamer: Callable[[], Streamer],
    *,
    overwrite: bool = False,
    resumed: Callable[[Sequence[str], str], None] = lambda done, discarded: None,
    wait: Callable[[], None] = lambda: None,
    carrier: Carrier | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]] | None:
    """Merge into `<output>.unfinished`, then rename it; several ranks each write some of the shards.

    Args:
        plan: what to do.
        output: the folder that will stand there, whole.
        streamer: makes the workers once the folder is ours.
        overwrite: replace what stands at `output`, and unfinished work of another merge.
        resumed: told what an earlier run has finished, and why earlier work was thrown away, before the work begins.
        wait: called now and then while the workers are at it.
        carrier: takes each shard as soon as it is finished, and everything else at the end; nothing is left at `output` then.
            For one process alone.
        ranks: this process among those that merge.

    Returns:
        A journal entry for each shard, in order; None on every rank but the first.

    Raises:
        OutputError, InputChangedError, NonFiniteError: finished shards are kept for the next run.
    """
    output = output.resolve()
    try:
        with ExitStack() as stack:

            def begin() -> tuple[Workplace, str]:
                work = stack.enter_context(workplace(plan, output))
                work.begin(overwrite=overwrite, carrier=carrier)
                return work, work.invite(ranks.world) if ranks.world > 1 else ""

            begun = ranks.first(begin)
            told = begun and {"token": begun[1], "done": list(begun[0].done), "discarded": begun[0].discarded}
            told = ranks.from_first(told)
            resumed(told["done"], told["discarded"])
            todo = [shard for shard in plan.shards if shard.file not in told["done"]]
            mine = share_out({shard.file: _work(shard, plan) for shard in todo}, ranks.world)[ranks.rank]

            def write() -> None:
                with (
                    nullcontext(begun[0])
                    if begun
                    else shared_workplace(plan, output, ranks.rank, told["token"]) as work
                ):
                    if carrier is not None:
                        work.carry(carrier)
                    _write_shards(work, plan, mine, streamer, wait, carrier)

            ranks.each(write)
            return ranks.first(lambda: _finish(begun[0], plan, output, overwrite, carrier) if begun else [])
    except OSError as error:
        where = error.filename or output
        raise OutputError(
            f"{where}: {error.strerror}", "check the disk and the permissions, then run it again"
        ) from error


def _work(shard: Shard, plan: Plan) -> int:
    """Bytes that are read and written for a shard."""
    return shard.nbytes + sum(plan.tensors[name].reads for name in shard.offsets)


def _finish(
    work: Workplace, plan: Plan, output: Path, overwrite: bool, carrier: Carrier | None
) -> list[dict[str, Any]]:
    """Everything that is no shard, and the folder's name."""
    work.collect()
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


def _write_shards(
    work: Workplace,
    plan: Plan,
    mine: Collection[str],
    streamer: Callable[[], Streamer],
    wait: Callable[[], None],
    carrier: Carrier | None,
) -> None:
    """Those that are this process's to write; with a carrier one travels while the next one is merged, and no third is ever here."""
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
            if shard.file not in mine:
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
