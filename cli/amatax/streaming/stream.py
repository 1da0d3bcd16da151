"""Planned tensors through workers, one thread each, to a sink. What reaches the sink does not depend on the threads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from amatax.errors import AmataxError
from amatax.methods import bind, method_needs, simplest
from amatax.planning.memory import CPU_BLOCK, CPU_ELEMENTS
from amatax.planning.plan import Plan
from amatax.planning.tensors import PlannedTensor
from amatax.streaming.buffers import Files
from amatax.streaming.chunks import Sink, TensorResult, Worker

GPU_ELEMENTS = 1 << 21  # large enough that launches and copies do not show
MOST_GPU_WORKERS = 4  # each pins about 100 MB; two hide the copies already
SMALL = 256 << 10  # bytes read; below, a tensor is mostly Python, and threads would only wait for each other
SAMPLED_TENSORS = 500  # at least, evenly over the model, where there are as many
LARGE = 4 << 20  # bytes; tensors above are taken largest first, so that no thread is left with the last large one


def pick_device(name: str) -> torch.device:
    """'cpu', 'cuda', 'cuda:1' or 'auto' (CUDA if there is one).

    Raises:
        AmataxError: if a named device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise AmataxError(f"--device {name}: no such device", "choose cpu, cuda, cuda:N or auto")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= count):
        have = f"cuda:0 to cuda:{count - 1} are here" if torch.cuda.is_available() else "torch sees no CUDA device here"
        raise AmataxError(f"--device {name}: {have}", "use --device cpu, or auto to take what is there")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def pick_devices(names: str) -> list[torch.device]:
    """One device, or several GPUs: 'cuda:0,cuda:1'.

    Raises:
        AmataxError: if one is not there, or the CPU is among several.
    """
    found = list(dict.fromkeys(pick_device(name.strip()) for name in names.split(",")))
    if len(found) > 1 and any(device.type == "cpu" for device in found):
        raise AmataxError(f"--device {names}: the CPU beside others", "name GPUs alone, such as cuda:0,cuda:1")
    return found


class Streamer:
    """Workers that live as long as a merge, so that their buffers are allocated once.

    Args:
        plan: what is merged.
        devices: where the kernel runs: one, or several GPUs that share the tensors.
        threads: workers; each has buffers of its own.
        allow_nonfinite: NaN and infinities pass.
        advance: called with the bytes read, from any thread.
        make_worker: a Worker, or what is made like one.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Sequence[torch.device],
        threads: int,
        *,
        allow_nonfinite: bool = False,
        advance: Callable[[int], None] = lambda n: None,
        make_worker: Callable[..., Worker] = Worker,
    ) -> None:
        merge = plan.recipe.merge
        name, options = simplest(merge.method, merge.options)
        method = bind(name, options)
        on_gpu = devices[0].type == "cuda"
        elements = GPU_ELEMENTS if on_gpu else CPU_ELEMENTS
        largest = max((t.reads // max(1, len(t.sources)) for t in plan.tensors.values()), default=1)
        elements = min(elements, max(1024, largest))  # a small model needs no large buffers
        names = list(plan.tensors)
        sampled = frozenset(names[:: max(1, len(names) // SAMPLED_TENSORS)])
        self._stop, self._advance = threading.Event(), advance
        self._roles = tuple(dict.fromkeys(("sft", *method_needs(name))))
        self._make: Callable[[torch.device, Files, Sink], Worker] = lambda device, files, sink: make_worker(
            method,
            self._roles,
            elements,
            elements if on_gpu else CPU_BLOCK,
            device,
            files,
            sink,
            sampled=sampled,
            allow_nonfinite=allow_nonfinite,
            stopped=self._stop.is_set,
        )
        far = any(checkpoint.remote is not None for checkpoint in plan.checkpoints.values())
        self._files: Callable[[], Files] = (lambda: _remote(plan)) if far else Files
        most = MOST_GPU_WORKERS * len(devices) if on_gpu else threads
        self._devices, self._threads = devices, max(len(devices), min(threads, most))
        self._workers: list[Worker] = []

    def run(
        self, tensors: Iterable[PlannedTensor], sink: Sink, wait: Callable[[], None] = lambda: None
    ) -> dict[str, TensorResult]:
        """Stream tensors to the sink (called from several threads, in order within a tensor).

        Args:
            tensors: any of the plan's.
            sink: takes each tensor's bytes; a tensor that is begun anew comes from its first byte on again.
            wait: called now and then from the calling thread while the workers are at it.

        Raises:
            What a worker or the sink raised first; KeyboardInterrupt stops the workers at their next chunk.
        """
        ordered = sorted(tensors, key=_order)
        few = bisect_left(ordered, 2, key=lambda tensor: _order(tensor)[0])
        shared, small = iter(ordered[:few]), iter(ordered[few:])  # the small ones are one worker's
        lock = threading.Lock()
        results: dict[str, TensorResult] = {}
        failures: list[BaseException] = []

        def work(worker: Worker, mine: Iterator[PlannedTensor]) -> None:
            try:
                while not self._stop.is_set():
                    with lock:
                        tensor = next(shared, None)
                    tensor = tensor or next(mine, None)
                    if tensor is None:
                        return
                    worker.advance = _at_most(tensor.reads, self._advance)
                    results[tensor.name] = worker.run(tensor)
            except BaseException as error:
                failures.append(error)
                self._stop.set()

        before = torch.get_num_threads()
        torch.set_num_threads(1)  # the threads are ours: torch's own only wait for each other on chunks this small
        with self._files() as files:
            try:
                while len(self._workers) < self._threads:
                    device = self._devices[len(self._workers) % len(self._devices)]
                    self._workers.append(self._make(device, files, sink))
            except torch.OutOfMemoryError as error:
                if not self._workers:
                    raise _no_memory(error) from None
                self._threads = len(self._workers)  # those that found room do it alone
            for worker in self._workers:
                worker.files, worker.sink = files, sink
            threads = [
                threading.Thread(target=work, args=(worker, iter(()) if i else small), daemon=True)
                for i, worker in enumerate(self._workers)
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.1)
                        wait()
            except BaseException:
                self._stop.set()
                for thread in threads:
                    thread.join()
                raise
            finally:
                torch.set_num_threads(before)
        if failures:
            first = next((f for f in failures if not isinstance(f, KeyboardInterrupt)), failures[0])
            raise _no_memory(first) if isinstance(first, torch.OutOfMemoryError) else first
        return results


def _at_most(total: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance` until so much is told: what is read again of a tensor that is begun anew is not told again."""
    left = total

    def tell(n: int) -> None:
        nonlocal left
        n = min(n, left)
        left -= n
        advance(n)

    return tell


def _remote(plan: Plan) -> Files:
    from amatax.streaming.remote_files import RemoteFiles, remote_files

    return RemoteFiles(remote_files(plan.checkpoints))


def _no_memory(error: torch.OutOfMemoryError) -> AmataxError:
    reason = str(error).partition("\n")[0]
    return AmataxError(
        f"the device has too little memory: {reason}", "run it with fewer --threads, or with --device cpu"
    )


def _order(tensor: PlannedTensor) -> tuple[int, int, str, int]:
    """Large ones first, by size; then in disk order; small ones last."""
    if tensor.reads > LARGE:
        return 0, -tensor.reads, "", 0
    first = next(iter(tensor.sources.values()))
    return 1 if tensor.reads > SMALL else 2, 0, str(first.path), first.offset
