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
from typing import Any, NamedTuple

import torch
import xxhash

from amatax.checkpoints.dtypes import INTEGER, torch_dtype
from amatax.errors import NonFiniteError
from amatax.methods import Chunk, wants_chunk
from amatax.planning.plan import PlannedTensor
from amatax.streaming.buffers import Bytes, Files, Numbers
from amatax.streaming.low_rank import Delta

Tensors = dict[str, torch.Tensor]
Hashes = dict[str, xxhash.xxh3_128]
Sink = Callable[[PlannedTensor, int, memoryview], None]  # (tensor, first byte within the tensor, its next bytes)
HALF = {"F16", "BF16"}
WIDE = {"F32", "F64"}
NARROW_RANGE = {"F16", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ"}  # where a finite value can overflow
WIDER = {"BF16": "float32", "F32": "float64"}  # what a value that overflows one dtype fits in
SAMPLE = 1 << 14  # elements of a sampled tensor in which the rounding of the output dtype is measured


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


class Worker:
    """Merges tensors one at a time in its own buffers; every thread has one.

    Args:
        kernel: the method's function with its options bound.
        roles: the models that can be read.
        elements: of a chunk, which is read and written at once.
        block: elements that are merged at once: their numbers stay in a core's own cache.
        device: where the kernel runs.
        prepare: what the method does with the whole tensor first, with its options bound.
        takes_half: the kernel rounds half precision itself, once.
        sampled: names of the tensors in which the rounding of the output dtype is measured.
    """

    def __init__(
        self,
        kernel: Callable[..., torch.Tensor],
        roles: tuple[str, ...],
        elements: int,
        block: int,
        device: torch.device,
        files: Files,
        sink: Sink,
        *,
        prepare: Callable[..., Any] | None = None,
        takes_half: bool = False,
        sampled: frozenset[str] = frozenset(),
        allow_nonfinite: bool = False,
        advance: Callable[[int], None] = lambda n: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.kernel, self.elements, self.device, self.files, self.sink = kernel, elements, device, files, sink
        self.prepare, self.wants_chunk = prepare, wants_chunk(kernel)
        self.sampled, self.block, self.takes_half = sampled, min(block, elements), takes_half
        self.allow_nonfinite, self.advance, self.stopped = allow_nonfinite, advance, stopped
        on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        depth = 2 if on_gpu else 1  # on a GPU the next chunk is read while this one is copied and merged
        self.slots = [_Slot(roles, elements, pinned=on_gpu) for _ in range(depth)]
        self.last = roles[-1]
        self.numbers = {role: Numbers(self.block * 8, device) for role in roles}
        self.deltas: dict[str, Delta] = {}  # of the tensor that is at work, by role

    def run(self, tensor: PlannedTensor) -> TensorResult:
        """Stream one tensor to the sink.

        Raises:
            NonFiniteError: for NaN, infinity (but equal ones) or overflow, unless allowed.
            InputChangedError: if a file has become shorter.
        """
        with torch.inference_mode():
            return self._run(tensor)

    def _run(self, tensor: PlannedTensor) -> TensorResult:
        result = TensorResult()
        hashes = {role: xxhash.xxh3_128() for role in (*tensor.sources, "output")}
        self.deltas = self._open_deltas(tensor, hashes)
        merge = self._copies if self._is_copy(tensor) else self._merges
        begin = 0
        for out in merge(tensor, math.prod(tensor.shape), hashes, result):
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
                role: Delta(entry, _compute_dtype(tensor), self.device, self.files, partial(seen, role))
                for role, entry in tensor.sources.items()
                if entry.delta is not None
            }

    def _is_copy(self, tensor: PlannedTensor) -> bool:
        """Whether the bytes of one model are written as they are."""
        copied = tensor.sources[tensor.copy_of] if tensor.copy_of is not None else None
        return copied is not None and copied.dtype == tensor.dtype and not self.deltas

    def _chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """(first element, elements) of every chunk; none for an empty tensor."""
        for first in range(0, count, self.elements):
            if self.stopped():
                raise KeyboardInterrupt
            yield first, min(self.elements, count - first)

    def _kernel(
        self, tensor: PlannedTensor, values: Tensors, out: torch.Tensor | None, first: int, stats: Any
    ) -> torch.Tensor:
        """The method's function on numbers of which the first one is element `first` of the tensor."""
        given: dict[str, Any] = {"stats": stats} if self.prepare else {}
        if self.wants_chunk:
            given["chunk"] = Chunk(tensor.name, first)
        return self.kernel(values, tensor.ratio, out, **given)

    def _prepared(self, tensor: PlannedTensor, sources: list[_Source]) -> Any:
        """What the method finds out about the whole tensor, from its numbers in the dtype it is merged in, block by block."""
        if self.prepare is None:
            return None
        slot = self.slots[0]

        def chunks() -> Iterator[Tensors]:
            for first, n in self._chunks(math.prod(tensor.shape)):
                if self.stream:
                    self.stream.synchronize()  # the last chunk may still be on its way from this memory
                for source in sources:
                    self.files.read(
                        source.path,
                        slot.raw[source.role].view[: n * source.width],
                        source.offset + first * source.width,
                    )
                raw = {source.role: slot.raw[source.role].numbers(source.dtype, n) for source in sources}
                for begin in range(0, n, self.block):
                    yield self._widened(raw, first, begin, min(n, begin + self.block), _compute_dtype(tensor))

        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            stats = self.prepare(chunks, tensor.ratio)
            if self.stream:
                self.stream.synchronize()
        return stats

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

    def _read_all(self, slot: _Slot, sources: list[_Source], first: int, n: int, hashes: Hashes) -> Tensors:
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

    def _read(self, slot: _Slot, source: _Source, first: int, n: int, hashes: Hashes) -> memoryview:
        """Fill one model's part of the slot, and take its checksum while it is in the cache."""
        view = slot.raw[source.role].view[: n * source.width]
        self.files.read(source.path, view, source.offset + first * source.width)
        hashes[source.role].update(view)
        self.advance(len(view))
        return view

    def _copies(self, tensor: PlannedTensor, count: int, hashes: Hashes, result: TensorResult) -> Iterator[memoryview]:
        """Chunks of one model, as they are; others are read only to be compared."""
        slot, copied, sources = self.slots[0], tensor.copy_of or "sft", _sources(tensor)
        floating = tensor.dtype not in INTEGER
        for first, n in self._chunks(count):
            views = {source.role: self._read(slot, source, first, n, hashes) for source in sources}
            if floating and not self.allow_nonfinite:
                values = slot.raw[copied].numbers(torch_dtype(tensor.dtype), n)
                if not _finite(values if values.element_size() > 1 else values.float()):
                    seen = values.to(torch.float64).masked_fill(self._mask(tensor, values, first), 0)
                    self._name_nonfinite(tensor, {copied: seen}, first)
            result.differs |= any(view != views[copied] for view in views.values())
            yield views[copied]

    def _merges(self, tensor: PlannedTensor, count: int, hashes: Hashes, result: TensorResult) -> Iterator[memoryview]:
        """Chunks through the kernel; on a GPU one is in flight while the next is read."""
        sources, out_dtype = _sources(tensor), torch_dtype(tensor.dtype)
        is_half = tensor.dtype in HALF and all(entry.dtype == tensor.dtype for entry in tensor.sources.values())
        merge = self._merge_half if self.takes_half and is_half and not self.deltas else self._merge_wide
        waiting: _Chunk | None = None
        stats = self._prepared(tensor, sources) if tensor.copy_of is None else None
        for i, (first, n) in enumerate(self._chunks(count)):
            slot = self.slots[i % len(self.slots)]
            out = slot.out.numbers(out_dtype, n)
            with torch.cuda.stream(self.stream) if self.stream else nullcontext():
                raw = self._read_all(slot, sources, first, n, hashes)
                screens = merge(tensor, raw, out, first, stats)
                if self.stream:
                    slot.done.record(self.stream)
            chunk = _Chunk(slot, first, raw, out, screens, stats)
            if self.stream is None:
                yield self._land(tensor, chunk, result)
            elif waiting:
                yield self._land(tensor, waiting, result)
            waiting = chunk
        if self.stream and waiting:
            yield self._land(tensor, waiting, result)

    def _merge_half(
        self, tensor: PlannedTensor, raw: Tensors, out: torch.Tensor, first: int, stats: Any
    ) -> list[torch.Tensor]:
        """Half precision through a kernel that rounds it itself, in one pass."""
        values, memory = raw, out
        if self.stream:
            values = {
                role: self.numbers[role].numbers(x.dtype, len(x)).copy_(x, non_blocking=True) for role, x in raw.items()
            }
            memory = values[self.last]
        merged = self._kernel(tensor, values, memory, first, stats)
        if merged is not out:
            out.copy_(merged, non_blocking=True)
        return [merged.sum()]

    def _merge_wide(
        self, tensor: PlannedTensor, raw: Tensors, out: torch.Tensor, first: int, stats: Any
    ) -> list[torch.Tensor]:
        """Any precision, block by block: widened, merged, narrowed."""
        compute = _compute_dtype(tensor)
        screens = []
        for begin in range(0, len(out), self.block):
            end = min(len(out), begin + self.block)
            values = self._widened(raw, first, begin, end, compute)
            if tensor.copy_of:
                merged = values[tensor.copy_of]
            else:
                merged = self._kernel(tensor, values, values[self.last], first + begin, stats)
            narrowed = merged.to(out.dtype) if self.stream else out[begin:end].copy_(merged)
            if self.stream:
                out[begin:end].copy_(narrowed, non_blocking=True)
            # NaN and infinity stay what they are when they are narrowed; bfloat16 is summed in float32 as it is
            screens.append(narrowed.sum() if out.dtype in (compute, torch.bfloat16) else narrowed.float().sum())
        return screens

    def _land(self, tensor: PlannedTensor, chunk: _Chunk, result: TensorResult) -> memoryview:
        """A computed chunk's bytes, checked."""
        if self.stream:
            chunk.slot.done.synchronize()
        if not all(map(math.isfinite, chunk.screens)):
            self._check(tensor, chunk.raw, chunk.out, chunk.first)
        if chunk.first == 0 and tensor.name in self.sampled and tensor.copy_of is None:
            raw = {role: numbers[:SAMPLE] for role, numbers in chunk.raw.items()}
            values = self._exact(raw, chunk.first, _compute_dtype(tensor))
            exact = self._kernel(tensor, values, None, 0, chunk.stats)
            result.change = float((exact - values["sft"]).abs_().nansum(dtype=torch.float64))
            result.lost = float((chunk.out[:SAMPLE].to(exact.dtype) - exact).abs_().nansum(dtype=torch.float64))
        return chunk.slot.out.view[: chunk.out.numel() * chunk.out.element_size()]

    def _exact(self, raw: Mapping[str, torch.Tensor], first: int, dtype: torch.dtype) -> Tensors:
        """A chunk's numbers on the CPU, adapters added, for a closer look."""
        host = {role: numbers.to("cpu", dtype, copy=True) for role, numbers in raw.items()}
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            for role, delta in self.deltas.items():
                delta.add_to(host[role], first, host[role])
        return host

    def _check(self, tensor: PlannedTensor, raw: Mapping[str, torch.Tensor], out: torch.Tensor, first: int) -> None:
        """Look closer where the sums were not finite: equal infinities stay, overflow and anything else is an error."""
        host = self._exact(raw, first, torch.float64)
        roles = list(host)
        equal = torch.ones_like(host[roles[0]], dtype=torch.bool)
        for role in roles[1:]:
            equal &= host[role] == host[roles[0]]
        if len(roles) > 1:
            out[equal] = host[roles[0]][equal].to(out.dtype)  # inf - inf is NaN, but a mask's -inf is -inf in both
        if self.allow_nonfinite:
            return
        # an infinity of one model is an error; of both, at the same place, a mask
        masks = equal & host[roles[0]].isinf() if len(roles) > 1 else self._mask(tensor, raw[roles[0]], first)
        self._name_nonfinite(tensor, {role: chunk.masked_fill(masks, 0) for role, chunk in host.items()}, first)
        written = out.to(torch.float64).masked_fill(masks, 0)
        if not written.isfinite().all():
            at = first + int((~written.isfinite()).nonzero()[0])
            raise NonFiniteError(
                f"{tensor.name!r}: a merged value overflows {tensor.dtype} (element {at})",
                f"choose a wider `output.dtype`, such as {WIDER.get(tensor.dtype, 'bfloat16')}",
            )

    def _mask(self, tensor: PlannedTensor, values: torch.Tensor, first: int) -> torch.Tensor:
        """Where a model whose values are taken alone holds an infinity that the other models hold too."""
        mine = values.to("cpu", torch.float64)
        mask = mine.isinf()
        for entry in tensor.others.values():
            n, width = len(mine), entry.nbytes // math.prod(entry.shape)
            there = Bytes(n * width)
            self.files.read(entry.path, there.view, entry.offset + first * width)
            mask &= there.numbers(torch_dtype(entry.dtype), n).to(torch.float64) == mine
        return mask if tensor.others else torch.zeros_like(mask)

    def _name_nonfinite(self, tensor: PlannedTensor, values: Mapping[str, torch.Tensor], first: int) -> None:
        for role, chunk in values.items():
            bad = ~chunk.to(torch.float64).isfinite()
            if bad.any():
                at = int(bad.nonzero()[0])
                entry = tensor.sources[role]
                file = self.files.named(entry.path) + (f" with {entry.delta.b.path}" if entry.delta else "")
                raise NonFiniteError(
                    f"{file}: {tensor.name!r} of {role} holds {float(chunk[at]):g} (element {first + at})",
                    "the checkpoint is probably broken; --allow-nonfinite merges it all the same",
                )


class _Slot:
    """The host memory of one chunk: each model's bytes, and the output's."""

    def __init__(self, roles: tuple[str, ...], elements: int, *, pinned: bool) -> None:
        self.raw = {role: Bytes(elements * 8, pinned=pinned) for role in roles}
        self.out = Bytes(elements * 8, pinned=pinned)
        if pinned:
            self.done = torch.cuda.Event(blocking=True)


class _Chunk(NamedTuple):
    """A chunk on its way: what was read, where the result arrives, and sums that are finite if all values are."""

    slot: _Slot
    first: int
    raw: dict[str, torch.Tensor]
    out: torch.Tensor
    screens: list[torch.Tensor]
    stats: Any


class _Source(NamedTuple):
    """One model's tensor on disk, in torch's words."""

    role: str
    path: Path
    offset: int
    width: int  # bytes of an element
    dtype: torch.dtype


def _sources(tensor: PlannedTensor) -> list[_Source]:
    count = max(1, math.prod(tensor.shape))
    return [
        _Source(role, e.path, e.offset, e.nbytes // count, torch_dtype(e.dtype)) for role, e in tensor.sources.items()
    ]


def _compute_dtype(tensor: PlannedTensor) -> torch.dtype:
    return torch.float64 if WIDE & {entry.dtype for entry in tensor.sources.values()} else torch.float32


def _finite(values: torch.Tensor) -> bool:
    """Whether all are finite, by their sum; a sum that overflowed is looked at closely."""
    return math.isfinite(values.sum(dtype=torch.float32)) or bool(values.to(torch.float64).isfinite().all())
