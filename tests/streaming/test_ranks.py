"""What the processes of one job tell each other, with the store of torch.distributed, in threads that stand for processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from amatax.errors import AmataxError, Fault, FaultsError, NonFiniteError, PlanError
from amatax.planning import memory
from amatax.streaming import joining
from amatax.streaming import ranks as module
from amatax.streaming.joining import among, joined
from amatax.streaming.processes import rank_and_world
from amatax.streaming.ranks import ALONE, Ranks, share_out


def company(world: int, job: Callable[[Ranks], Any]) -> list[Any]:
    """What the job gives, or raises, on every rank."""
    store, found = dist.HashStore(), [None] * world

    def run(rank: int) -> None:
        try:
            with among(store, rank, world) as ranks:
                found[rank] = job(ranks)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(joining, "FAREWELL", 0.5)


def test_values_come_to_all_by_rank() -> None:
    def job(ranks: Ranks) -> Any:
        return ranks.gather({"n": ranks.rank}), ranks.from_first(f"of {ranks.rank}"), ranks.first(lambda: ranks.rank)

    everyone = [{"n": 0}, {"n": 1}, {"n": 2}]
    assert company(3, job) == [(everyone, "of 0", 0), (everyone, "of 0", None), (everyone, "of 0", None)]
    assert (ALONE.gather(1), ALONE.from_first(2), ALONE.first(lambda: 3), ALONE.in_turn(lambda: 4)) == ([1], 2, 3, 4)


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank, then one of each machine, then the others: here ranks 0 to 3 on two machines."""
    done: list[int] = []
    local = threading.local()
    monkeypatch.setattr(module, "local_rank", lambda: local.rank)

    def job(ranks: Ranks) -> int:
        local.rank = ranks.rank % 2
        return ranks.in_turn(lambda: done.append(ranks.rank) or 10 * ranks.rank)

    assert company(4, job) == [0, 10, 20, 30]
    assert done[:2] == [0, 2] and sorted(done[2:]) == [1, 3]


def fail(ranks: Ranks, error: Exception, *where: int) -> Any:
    """A step that fails on some ranks; the others look now and then, and would go on for a minute."""

    def step() -> None:
        if ranks.rank in where:
            raise error
        end = time.monotonic() + 60
        while time.monotonic() < end:
            ranks.look()
            time.sleep(0.01)

    return ranks.each(step)


def test_one_rank_s_error_is_everybody_s_and_names_it() -> None:
    found = company(3, lambda ranks: fail(ranks, NonFiniteError("NaN in w", "look"), 1))
    assert {type(error) for error in found} == {NonFiniteError}
    assert len({error.message for error in found}) == 1
    assert (
        found[0].message.startswith("rank 1 (") and found[0].message.endswith("): NaN in w") and found[0].hint == "look"
    )


def test_the_same_error_of_all_is_told_as_one_process_tells_it() -> None:
    fault = Fault("no such layer", "recipe.yaml:3", "see there")
    found = company(3, lambda ranks: fail(ranks, PlanError([fault]), 0, 1, 2))
    assert [error.faults for error in found] == [[fault]] * 3
    assert {type(error) for error in found} == {PlanError}


def test_different_errors_stand_beside_each_other() -> None:
    def job(ranks: Ranks) -> None:
        ranks.each(lambda: (_ for _ in ()).throw(AmataxError(f"disk {ranks.rank // 2}")))

    error = company(4, job)[3]
    assert isinstance(error, FaultsError)
    assert [fault.message.partition(" (")[0] for fault in error.faults] == ["ranks 0, 1", "ranks 2, 3"]
    assert [fault.message.rpartition(": ")[2] for fault in error.faults] == ["disk 0", "disk 1"]


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(28, "No space left on device", "/out/x"), "/out/x: No space left"), (TypeError("x"), "a bug in amatax")],
)
def test_other_exceptions_reach_the_others_too(error: Exception, said: str) -> None:
    assert all(said in found.message for found in company(2, lambda ranks: fail(ranks, error, 0)))


def test_what_breaks_after_anothers_fault_is_not_told() -> None:
    def job(ranks: Ranks) -> None:
        def step() -> None:
            if ranks.rank == 0:
                raise AmataxError("the cause")
            time.sleep(0.3)
            raise RuntimeError("connection closed by peer")

        ranks.each(step)

    assert all(error.message.endswith("): the cause") for error in company(2, job))


def test_an_interrupt_of_one_reaches_those_who_wait_and_those_who_work() -> None:
    def job(ranks: Ranks) -> None:
        if ranks.rank == 0:
            raise KeyboardInterrupt
        fail(ranks, AmataxError("never"), *([] if ranks.rank == 1 else [2]))

    assert [type(error) for error in company(3, job)] == [KeyboardInterrupt] * 3


def test_a_rank_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has died with its machine: no message, no more signs of life."""
    monkeypatch.setattr(module, "SILENT", 0.5)

    def job(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            ranks._ended.set()
            time.sleep(3)
            return "late"
        return ranks.gather(ranks.rank)

    found = company(3, job)
    assert found[1] == "late"
    assert all("rank 1 has not been heard of" in found[rank].message for rank in (0, 2))


def test_a_slow_rank_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT", 0.5)
    assert company(2, lambda ranks: (time.sleep(1.5 * ranks.rank), ranks.gather(1))[1]) == [[1, 1]] * 2


def test_bytes_read_by_the_others() -> None:
    def job(ranks: Ranks) -> int:
        ranks.advance(10**ranks.rank)
        end = time.monotonic() + 30
        while (read := ranks.read_by_others()) != 111 - 10**ranks.rank and time.monotonic() < end:
            time.sleep(0.01)
        ranks.gather(None)
        return read

    assert company(3, job) == [110, 101, 11]


def test_shares_are_of_about_the_same_size() -> None:
    assert share_out({"a": 1, "b": 5, "c": 3, "d": 2, "e": 2}, 2) == [["b", "e"], ["c", "d", "a"]]
    assert share_out({"a": 1, "b": 1, "c": 1}, 5) == [["a"], ["b"], ["c"], [], []]
    assert share_out({}, 2) == [[], []]


def test_threads_are_divided_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert memory.default_threads() == 6
    for ranks, threads in (("2", 3), ("4", 1), ("8", 1), ("what", 6)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert memory.default_threads() == threads


def test_processes_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler sets WORLD_SIZE, and nobody starts torchrun."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(AmataxError, match="4 processes are announced") as raised, joined():
        pass
    assert "torchrun" in raised.value.hint


@pytest.mark.parametrize("rank", ["4", "9", "-1"])
def test_a_number_that_no_process_has(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    """A script that counts from 1: nobody would ever be complete."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(AmataxError, match=rf"RANK is {rank}, and WORLD_SIZE 4.* 0 to 3") as raised, joined():
        pass
    assert "torchrun" in raised.value.hint


def test_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world() == (3, 4)
