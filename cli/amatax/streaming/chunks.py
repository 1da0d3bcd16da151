"""One tensor, chunk by chunk: read, checksum, compute, check, hand over. The same for every device.

Half precision is merged in float32, float32 and float64 in float64, and rounded to the output dtype. A kernel that does this
itself gets half precision as it is, which saves the passes over the numbers that widen and narrow them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from amatax.checkpoints.dtypes import INTEGER, torch_dtype
from amatax.methods import BoundMethod, Chunk, Chunks, bind
from amatax.planning.plan import PlannedTensor
from amatax.streaming.buffers import Files, Numbers
from amatax.streaming.low_rank import Delta
from amatax.streaming.nonfinite import check_copy, check_merged
from amatax.streaming.pieces import Merging, Part, Slot, Source, compute_dtype, sources_of

Tensors = dict[str, torch.Tensor]
Hashes = dict[str, xxhash.xxh3_128]
Look = Callable[[Tensors, torch.Tensor], bool]  # (every model's numbers of a chunk, memory for the result)
Sink = Callable[
    [PlannedTensor, int, memoryview], None
]  # (tensor, first byte within it, or 0 once more, its next bytes)
HALF = {"F16", "BF16"}
LEAST = 1 << 15  # elements of a chunk; with less, a device without memory is given up
SAMPLE = 1 << 14  # elements of a sampled tensor in which the rounding of the output dtype is measured
RUN, APART = 1 << 13, 8  # for a sample of a large tensor, one run of so many elements is read in so many runs
LARGE = 64 * RUN * APART


@dataclass
class TensorResult:
    """What is known of a tensor after it streamed by.

    Attributes:
        checksums: XXH3-128 of the bytes read from each model and of those written ("output").
        change: sum of |merged - sft| over the sample (the tensor's first elements).
        lost: sum of |written - merged| over the sample: what the output dtype rounded away.
        differs: an integer tensor, copied from SFT, that is another one in RLHF.
    """

    checksums: dict[str, str] = field(default_factory=dict)
    change: float = 0.0
    lost: float = 0.0
    differs: bool = False


class NotAsPresumedError(Exception):
    """A tensor is not what its method presumed."""


class Worker:
    """Merges tensors one at a time in its own buffers; every thread has one.

    Args:
        method: what merges, with its options.
        roles: the models that can be read.
        elements: of a chunk, which is read and written at once.
        block: elements that are merged at once: their numbers stay in a core's own cache.
        device: where the kernel runs.
        sampled: names of the tensors in which the rounding of the output dtype is measured.
    """

    def __init__(
        self,
        method: BoundMethod,
        roles: tuple[str, ...],
        elements: int,
        block: int,
        device: torch.device,
        files: Files,
        sink: Sink,
        *,
        sampled: frozenset[str] = frozenset(),
        allow_nonfinite: bool = False,
        advance: Callable[[int], None] = lambda n: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.method, self.elements, self.device, self.files, self.sink = method, elements, device, files, sink
        self.sampled, self.block, self.roles = sampled, min(block, elements), roles
        self.allow_nonfinite, self.advance, self.stopped = allow_nonfinite, advance, stopped
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.deltas: dict[str, Delta] = {}  # of the tensor that is at work, by role
        self._allocate()

    def _allocate(self) -> None:
        self.slots = self._make_slots()
        self.numbers = {role: Numbers(self.block * 8, self.device) for role in self.roles}

    def _make_slots(self) -> list[Slot]:
        depth = 2 if self.stream else 1  # on a GPU the next chunk is read while this one is copied and merged
        return [Slot(self.roles, self.elements, pinned=bool(self.stream)) for _ in range(depth)]

    def run(self, tensor: PlannedTensor) -> TensorResult:
        """Stream one tensor to the sink; again, if it is not as presumed, or, in smaller chunks, if the device runs out of memory.

        Raises:
            NonFiniteError: for NaN, infinity (but equal ones) or overflow, unless allowed.
            InputChangedError: if a file has become shorter.
            torch.OutOfMemoryError: if there is no room even for small chunks.
        """
        self.presumes = True
        while True:
            try:
                if not self.slots:
                    self._allocate()
                with torch.inference_mode():
                    return self._run(tensor)
            except NotAsPresumedError:
                self.presumes = False
                continue
            except torch.OutOfMemoryError:
                if self.elements <= LEAST:
                    raise
            self.elements //= 4
            self.block = min(self.block, self.elements)
            self.slots, self.numbers = [], {}
            if self.stream:
                self.stream.synchronize()
                torch.cuda.empty_cache()

    def _run(self, tensor: PlannedTensor) -> TensorResult:
        result = TensorResult()
        hashes = {role: xxhash.xxh3_128() for role in (*tensor.sources, "output")}
        self.deltas, begin = self._open_deltas(tensor, hashes), 0
        for part in self._parts(tensor):
            merge = self._copies if part.is_copy and not self.deltas else self._merges
            for out in merge(part, hashes, result):
                hashes["output"].update(out)
                self.sink(tensor, begin, out)
                begin += len(out)
        result.checksums = {role: h.hexdigest() for role, h in hashes.items()}
        return result

    def _open_deltas(self, tensor: PlannedTensor, hashes: Hashes) -> dict[str, Delta]:
        """What adapters make of this tensor; their bytes come first in the models' checksums."""

        def seen(role: str, view: memoryview) -> None:
            hashes[role].update(view)
            self.advance(len(view))

        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            return {
                role: Delta(entry, compute_dtype(tensor), self.device, self.files, partial(seen, role))
                for role, entry in tensor.sources.items()
                if entry.delta is not None
            }

    def _parts(self, tensor: PlannedTensor) -> Iterator[Part]:
        """A tensor as one part; or its rows that all models have, and those that are averaged because base lacks them."""
        count = math.prod(tensor.shape)
        common = count if tensor.averaged_from is None else tensor.averaged_from
        yield Part(tensor, self.method, range(common))
        if common < count:
            two = {role: entry for role, entry in tensor.sources.items() if role != "base"}
            yield Part(tensor._replace(sources=two), bind("average", {}), range(common, count))

    def _chunks(self, elements: range) -> Iterator[tuple[int, int]]:
        """(first element, elements) of every chunk; none for an empty tensor."""
        for first in range(elements.start, elements.stop, self.elements):
            if self.stopped():
                raise KeyboardInterrupt
            yield first, min(self.elements, elements.stop - first)

    def _last(self, values: Tensors) -> str:
        """The model whose numbers the kernel may write over."""
        return self.roles[-1] if self.roles[-1] in values else list(values)[-1]

    def _kernel(self, part: Part, values: Tensors, out: torch.Tensor | None, first: int, stats: Any) -> torch.Tensor:
        """The method's function on numbers of which the first one is element `first` of the tensor."""
        given: dict[str, Any] = {"stats": stats} if part.method.prepare else {}
        if part.method.wants_chunk:
            given["chunk"] = Chunk(part.tensor.name, first)
        merged: torch.Tensor = part.method.kernel(values, part.tensor.ratio, out, **given)
        return merged

    def _widens(self, part: Part) -> bool:
        """Whether the method gets bfloat16 as it is, and widens it itself."""
        tensor = part.tensor
        narrow = all(entry.dtype == "BF16" for entry in tensor.sources.values()) and tensor.copy_of is None
        return part.method.widens and narrow and self.device.type == "cpu" and not self.deltas

    def _presumed(self, part: Part) -> tuple[Any, Look] | None:
        """What the method presumes of the tensor, and how it looks at chunks; None if it has to go through the whole tensor first."""
        plain = self.device.type == "cpu" and not self.deltas and part.tensor.copy_of is None
        presume = part.method.presume
        found: tuple[Any, Look] | None = presume() if presume and plain and self.presumes else None
        return found

    def _prepared(self, part: Part, sources: list[Source]) -> Any:
        """What the method finds out about the whole tensor, from its numbers in the dtype it is merged in, block by block."""
        tensor, prepare = part.tensor, part.method.prepare
        if prepare is None or tensor.copy_of is not None or not part.elements:
            return None
        slot, as_is = self.slots[0], self._widens(part)

        def through(every: int, start: int) -> Iterator[Tensors]:
            early = 1 if self.deltas else every  # an adapter's part is made for whole rows
            large = every > APART and len(part.elements) >= LARGE
            sparse = large and self.files.parts and not self.deltas
            for first, raw in self._sparse(part, slot, sources) if sparse else self._dense(part, slot, sources, start):
                step = early // APART if sparse else early
                raw = {role: numbers[::step] for role, numbers in raw.items()}
                if as_is:
                    yield raw
                    continue
                count = min(map(len, raw.values()))
                for begin in range(0, count, self.block):
                    end = min(count, begin + self.block)
                    values = self._widened(raw, first, begin, end, compute_dtype(tensor))
                    yield {role: numbers[:: every // early] for role, numbers in values.items()}

        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            stats = prepare(Chunks(len(part.elements), through), tensor.ratio)
            if self.stream:
                self.stream.synchronize()
        return stats

    def _dense(self, part: Part, slot: Slot, sources: list[Source], start: int) -> Iterator[tuple[int, Tensors]]:
        """(first element, every model's numbers) of each chunk from an element of the part on."""
        for first, n in self._chunks(part.elements[start:]):
            if self.stream:
                self.stream.synchronize()  # the last chunk may still be on its way from this memory
            yield first, {source.role: self._numbers(slot, source, first, n) for source in sources}

    def _sparse(self, part: Part, slot: Slot, sources: list[Source]) -> Iterator[tuple[int, Tensors]]:
        """The same of one run in APART, side by side: most of the part is not read."""
        whole = part.elements[: len(part.elements) // RUN * RUN]
        runs = whole[:: RUN * APART]
        for i in range(0, len(runs), max(1, self.elements // RUN)):
            some = runs[i : i + max(1, self.elements // RUN)]
            if self.stopped():
                raise KeyboardInterrupt
            if self.stream:
                self.stream.synchronize()
            for source in sources:
                view, size = slot.raw[source.role].view, RUN * source.width
                for k, first in enumerate(some):
                    self.files.read(source.path, view[k * size : (k + 1) * size], source.offset + first * source.width)
            yield some[0], {s.role: slot.raw[s.role].numbers(s.dtype, len(some) * RUN) for s in sources}

    def _widened(self, raw: Tensors, first: int, begin: int, end: int, compute: torch.dtype) -> Tensors:
        """Numbers of a block on the device, adapters added; on a GPU the narrow bytes cross the bus, and are widened there.

        `raw` begins at element `first` of the tensor, the block at element `begin` of `raw`.
        """
        values: Tensors = {}
        for role, numbers in raw.items():
            twin = next((other for other in values if raw[other] is numbers and other not in self.deltas), None)
            out = self.numbers[role].numbers(compute, end - begin)
            if twin is None:
                part = numbers[begin:end]
                out.copy_(part.to(self.device, non_blocking=True) if self.stream else part)
            elif role not in self.deltas:
                out.copy_(values[twin])
            if role in self.deltas:
                self.deltas[role].add_to(out if twin is None else values[twin], first + begin, out)
            values[role] = out
        return values

    def _read_all(self, slot: Slot, sources: list[Source], first: int, n: int, hashes: Hashes) -> Tensors:
        """Every model's part of a chunk; what two models share, one of them with an adapter, is read once."""
        raw: Tensors = {}
        views: dict[tuple[Path, int], tuple[str, memoryview]] = {}
        for source in sources:
            place = (source.path, source.offset)
            if place in views:
                role, view = views[place]
                hashes[source.role].update(view)
                raw[source.role] = raw[role]
                continue
            views[place] = source.role, self._read(slot, source, first, n, hashes)
            raw[source.role] = slot.raw[source.role].numbers(source.dtype, n)
        return raw

    def _numbers(self, slot: Slot, source: Source, first: int, n: int) -> torch.Tensor:
        """One model's elements of a chunk, fetched."""
        view = slot.raw[source.role].view[: n * source.width]
        self.files.read(source.path, view, source.offset + first * source.width)
        return slot.raw[source.role].numbers(source.dtype, n)

    def _out(self, slot: Slot, dtype: torch.dtype, first: int, n: int) -> torch.Tensor:
        """Where the merged elements of a chunk go."""
        return slot.out.numbers(dtype, n)

    def _read(self, slot: Slot, source: Source, first: int, n: int, hashes: Hashes) -> memoryview:
        """Fill one model's part of the slot, and take its checksum while it is in the cache."""
        self._numbers(slot, source, first, n)
        view = slot.raw[source.role].view[: n * source.width]
        hashes[source.role].update(view)
        self.advance(len(view))
        return view

    def _copies(self, part: Part, hashes: Hashes, result: TensorResult) -> Iterator[memoryview]:
        """Chunks of one model, as they are; others are read only to be compared."""
        tensor = part.tensor
        slot, copied, sources = self.slots[0], tensor.copy_of or "sft", sources_of(tensor)
        floating = tensor.dtype not in INTEGER
        for first, n in self._chunks(part.elements):
            views = {source.role: self._read(slot, source, first, n, hashes) for source in sources}
            if floating and not self.allow_nonfinite:
                check_copy(tensor, copied, slot.raw[copied].numbers(torch_dtype(tensor.dtype), n), first, self.files)
            result.differs |= any(view != views[copied] for view in views.values())
            yield views[copied]

    def _merges(self, part: Part, hashes: Hashes, result: TensorResult) -> Iterator[memoryview]:
        """Chunks through the kernel; on a GPU one is in flight while the next is read."""
        tensor = part.tensor
        sources, out_dtype = sources_of(tensor), torch_dtype(tensor.dtype)
        is_half = tensor.dtype in HALF and all(entry.dtype == tensor.dtype for entry in tensor.sources.values())
        merge = self._merge_half if part.method.takes_half and is_half and not self.deltas else self._merge_wide
        waiting: Merging | None = None
        stats, look = self._presumed(part) or (self._prepared(part, sources), None)
        for i, (first, n) in enumerate(self._chunks(part.elements)):
            slot = self.slots[i % len(self.slots)]
            out = self._out(slot, out_dtype, first, n)
            with torch.cuda.stream(self.stream) if self.stream else nullcontext():
                raw = self._read_all(slot, sources, first, n, hashes)
                if look and not look(raw, out):
                    raise NotAsPresumedError
                screens = merge(part, raw, out, first, stats)
                if self.stream:
                    slot.done.record(self.stream)
            chunk = Merging(slot, first, raw, out, screens, stats)
            if self.stream is None:
                yield self._land(part, chunk, result)
            elif waiting:
                yield self._land(part, waiting, result)
            waiting = chunk
        if self.stream and waiting:
            yield self._land(part, waiting, result)

    def _merge_half(self, part: Part, raw: Tensors, out: torch.Tensor, first: int, stats: Any) -> list[torch.Tensor]:
        """Half precision through a kernel that rounds it itself, in one pass."""
        values, memory = raw, out
        if self.stream:
            values = {
                role: self.numbers[role].numbers(x.dtype, len(x)).copy_(x, non_blocking=True) for role, x in raw.items()
            }
            memory = values[self._last(values)]
        merged = self._kernel(part, values, memory, first, stats)
        if merged is not out:
            out.copy_(merged, non_blocking=True)
        return [merged.sum()]

    def _merge_wide(self, part: Part, raw: Tensors, out: torch.Tensor, first: int, stats: Any) -> list[torch.Tensor]:
        """Any precision, block by block: widened, merged, narrowed."""
        compute, copied = compute_dtype(part.tensor), part.tensor.copy_of
        as_is = self._widens(part) and not part.method.takes_half  # it would round to half precision
        screens = []
        step = len(out) if as_is else self.block
        for begin in range(0, len(out), step):
            end = min(len(out), begin + step)
            if as_is:
                merged = self._kernel(part, raw, out, first, stats)
            else:
                values = self._widened(raw, first, begin, end, compute)
                memory = values[self._last(values)]
                merged = values[copied] if copied else self._kernel(part, values, memory, first + begin, stats)
            if self.stream:
                narrowed = merged.to(out.dtype)
            else:
                narrowed = out if merged is out else out[begin:end].copy_(merged)
            if self.stream:
                out[begin:end].copy_(narrowed, non_blocking=True)
            # NaN and infinity stay what they are when they are narrowed; bfloat16 is summed in float32 as it is
            screens.append(narrowed.sum() if out.dtype in (compute, torch.bfloat16) else narrowed.float().sum())
        return screens

    def _land(self, part: Part, chunk: Merging, result: TensorResult) -> memoryview:
        """A computed chunk's bytes, checked."""
        if self.stream:
            chunk.slot.done.synchronize()
        self._check(part, chunk, result)
        return chunk.slot.out.view[: chunk.out.numel() * chunk.out.element_size()]

    def _check(self, part: Part, chunk: Merging, result: TensorResult) -> None:
        """Look closer where a merged value may not be finite; measure the rounding where that is wanted."""
        tensor = part.tensor
        if not all(map(math.isfinite, chunk.screens)):
            values = self._exact(chunk.raw, chunk.first, torch.float64)
            out = chunk.out.cpu()
            check_merged(tensor, values, out, chunk.first, self.files, allow=self.allow_nonfinite)
            if out is not chunk.out:
                chunk.out.copy_(out)
        if chunk.first == 0 and tensor.name in self.sampled and tensor.copy_of is None:
            raw = {role: numbers[:SAMPLE] for role, numbers in chunk.raw.items()}
            values = self._exact(raw, chunk.first, compute_dtype(tensor))
            exact = self._kernel(part, values, None, 0, chunk.stats)
            result.change = float((exact - values["sft"]).abs_().nansum(dtype=torch.float64))
            result.lost = float((chunk.out[:SAMPLE].to(exact.dtype) - exact).abs_().nansum(dtype=torch.float64))

    def _exact(self, raw: Mapping[str, torch.Tensor], first: int, dtype: torch.dtype) -> Tensors:
        """A chunk's numbers on the CPU, adapters added, for a closer look."""
        host = {role: numbers.to("cpu", dtype, copy=True) for role, numbers in raw.items()}
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            for role, delta in self.deltas.items():
                if role in host:
                    delta.add_to(host[role], first, host[role])
        return host
