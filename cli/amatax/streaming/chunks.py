"""One tensor, chunk by chunk: read, checksum, compute, check, hand over. The same for every device.

Half precision is merged in float32, float32 and float64 in float64, and rounded once to the output dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import INTEGER, torch_dtype
from amatax.errors import NonFiniteError
from amatax.planning.plan import PlannedTensor
from amatax.streaming.buffers import Bytes, Files

Sink = Callable[[PlannedTensor, int, memoryview], None]  # (tensor, first byte within the tensor, its next bytes)
WIDE = {"F32", "F64"}
NARROW_RANGE = {"F16", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ"}  # where a finite value can overflow
SAMPLE = 1 << 14  # elements of each tensor in which the rounding of the output dtype is measured


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
        elements: of a chunk.
        device: where the kernel runs.
    """

    def __init__(
        self,
        kernel: Callable[..., torch.Tensor],
        roles: tuple[str, ...],
        elements: int,
        device: torch.device,
        files: Files,
        sink: Sink,
        *,
        allow_nonfinite: bool = False,
        advance: Callable[[int], None] = lambda n: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.kernel, self.elements, self.device, self.files, self.sink = kernel, elements, device, files, sink
        self.allow_nonfinite, self.advance, self.stopped = allow_nonfinite, advance, stopped
        on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        depth = 2 if on_gpu else 1  # on a GPU the next chunk is read while this one is copied and merged
        self.slots = [_Slot(roles, elements, pinned=on_gpu) for _ in range(depth)]
        self._numbers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def run(self, tensor: PlannedTensor) -> TensorResult:
        """Stream one tensor to the sink.

        Raises:
            NonFiniteError: for NaN, infinity (but equal ones) or overflow, unless allowed.
            InputChangedError: if a file has become shorter.
        """
        result = TensorResult()
        hashes = {role: xxhash.xxh3_128() for role in tensor.sources}
        written = xxhash.xxh3_128()
        count = math.prod(tensor.shape)
        steps = self._copies(tensor, count, result) if self._is_copy(tensor) else self._merges(tensor, count, result)
        begin = 0
        for slot, sizes, out in steps:
            for role, size in sizes.items():
                hashes[role].update(slot.raw[role].view[:size])
            written.update(out)
            self.sink(tensor, begin, out)
            begin += len(out)
            self.advance(sum(sizes.values()))
        result.checksums = {role: h.hexdigest() for role, h in hashes.items()} | {"output": written.hexdigest()}
        return result

    def _is_copy(self, tensor: PlannedTensor) -> bool:
        """Whether the bytes of one model are written as they are."""
        return tensor.copy_of is not None and tensor.sources[tensor.copy_of].dtype == tensor.dtype

    def _chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """(first element, elements) of every chunk; one empty chunk for an empty tensor."""
        for first in range(0, count, self.elements):
            if self.stopped():
                raise KeyboardInterrupt
            yield first, min(self.elements, count - first)

    def _read(self, slot: _Slot, tensor: PlannedTensor, first: int, n: int) -> dict[str, int]:
        """Fill the slot; the bytes read of each model."""
        sizes = {}
        for role, entry in tensor.sources.items():
            width = _width(entry)
            sizes[role] = n * width
            self.files.read(entry.path, slot.raw[role].view[: n * width], entry.offset + first * width)
        return sizes

    def _copies(self, tensor: PlannedTensor, count: int, result: TensorResult) -> Iterator[_Step]:
        role = tensor.copy_of
        assert role is not None
        slot = self.slots[0]
        floating = tensor.dtype not in INTEGER
        for first, n in self._chunks(count):
            sizes = self._read(slot, tensor, first, n)
            if floating and not self.allow_nonfinite:
                values = slot.raw[role].numbers(torch_dtype(tensor.dtype), n)
                if not _finite(values if values.element_size() > 1 else values.float()):
                    self._name_nonfinite(tensor, {role: values}, first)
            for other in sizes:
                result.differs |= slot.raw[other].view[: sizes[other]] != slot.raw[role].view[: sizes[role]]
            yield slot, sizes, slot.raw[role].view[: sizes[role]]

    def _merges(self, tensor: PlannedTensor, count: int, result: TensorResult) -> Iterator[_Step]:
        """Chunks through the kernel; on a GPU one is in flight while the next is read."""
        wide = bool(WIDE & {entry.dtype for entry in tensor.sources.values()})
        compute = torch.float64 if wide else torch.float32
        out_dtype = torch_dtype(tensor.dtype)
        dtypes = {role: torch_dtype(entry.dtype) for role, entry in tensor.sources.items()}
        in_flight: tuple[Any, ...] | None = None
        for i, (first, n) in enumerate(self._chunks(count)):
            slot = self.slots[i % len(self.slots)]
            sizes = self._read(slot, tensor, first, n)
            raw = {role: slot.raw[role].numbers(dtypes[role], n) for role in sizes}
            out = slot.out.numbers(out_dtype, n)
            if self.stream is None:
                screen = self._compute(tensor, raw, out, compute, first, result)
                self._check(tensor, raw, out, screen, first)
                yield slot, sizes, slot.out.view[: n * out.element_size()]
                continue
            with torch.cuda.stream(self.stream):
                screen = self._compute(tensor, raw, out, compute, first, result)
                slot.done.record(self.stream)
            if in_flight:
                yield self._land(tensor, *in_flight)
            in_flight = (slot, sizes, raw, out, screen, first)
        if in_flight:
            yield self._land(tensor, *in_flight)

    def _land(
        self,
        tensor: PlannedTensor,
        slot: _Slot,
        sizes: dict[str, int],
        raw: dict[str, torch.Tensor],
        out: torch.Tensor,
        screen: torch.Tensor,
        first: int,
    ) -> _Step:
        """Wait for a chunk that was computed on the GPU."""
        slot.done.synchronize()
        self._check(tensor, raw, out, screen, first)
        return slot, sizes, slot.out.view[: out.numel() * out.element_size()]

    def _compute(
        self,
        tensor: PlannedTensor,
        raw: Mapping[str, torch.Tensor],
        out: torch.Tensor,
        compute: torch.dtype,
        first: int,
        result: TensorResult,
    ) -> torch.Tensor:
        """Raw values -> merged values in `out`. Returns sums that are finite if all values are (on the device still)."""
        values = {role: self._buffer(role, compute, chunk.numel()) for role, chunk in raw.items()}
        for role, chunk in raw.items():
            if self.stream is None:
                values[role].copy_(chunk)
            else:  # the narrow bytes cross the bus, and are widened on the device
                values[role].copy_(chunk.to(self.device, non_blocking=True))
        merged = values[tensor.copy_of] if tensor.copy_of else self.kernel(values, tensor.ratio)
        narrowed = out.copy_(merged) if self.stream is None else merged.to(out.dtype)
        if self.stream is not None:
            out.copy_(narrowed, non_blocking=True)
        screen = merged.sum()
        if tensor.dtype in NARROW_RANGE or (compute is torch.float64 and tensor.dtype != "F64"):
            screen = screen + narrowed.float().sum()
        if first == 0:
            sft = values.get("sft")
            if sft is not None and tensor.copy_of is None:
                exact, stored = merged[:SAMPLE], narrowed[:SAMPLE].to(compute)
                result.change = float((exact - sft[:SAMPLE]).abs_().sum(dtype=torch.float64))
                result.lost = float((stored - exact).abs_().sum(dtype=torch.float64))
        return screen

    def _buffer(self, role: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        key = (role, dtype)
        if key not in self._numbers:
            self._numbers[key] = torch.empty(self.elements, dtype=dtype, device=self.device)
        return self._numbers[key][:count]

    def _check(
        self,
        tensor: PlannedTensor,
        raw: Mapping[str, torch.Tensor],
        out: torch.Tensor,
        screen: torch.Tensor,
        first: int,
    ) -> None:
        """Look closer where the sums were not finite: equal infinities stay, overflow and anything else is an error."""
        if math.isfinite(screen):
            return
        host = {role: chunk.to("cpu", torch.float64) for role, chunk in raw.items()}
        roles = list(host)
        equal = torch.ones_like(host[roles[0]], dtype=torch.bool)
        for role in roles[1:]:
            equal &= host[role] == host[roles[0]]
        if len(roles) > 1:
            out[equal] = host[roles[0]][equal].to(out.dtype)  # inf - inf is NaN, but a mask's -inf is -inf in both
        if self.allow_nonfinite:
            return
        # an infinity of one model is an error; of both, at the same place, a mask
        masks = equal & host[roles[0]].isinf() if len(roles) > 1 else torch.zeros_like(equal)
        self._name_nonfinite(tensor, {role: chunk.masked_fill(masks, 0) for role, chunk in host.items()}, first)
        written = out.to(torch.float64).masked_fill(masks, 0)
        if not written.isfinite().all():
            at = first + int((~written.isfinite()).nonzero()[0])
            raise NonFiniteError(
                f"{tensor.name!r}: a merged value overflows {tensor.dtype} (element {at})",
                "choose a wider `output.dtype`, such as bfloat16",
            )

    def _name_nonfinite(self, tensor: PlannedTensor, values: Mapping[str, torch.Tensor], first: int) -> None:
        for role, chunk in values.items():
            bad = ~chunk.to(torch.float64).isfinite()
            if bad.any():
                at = int(bad.nonzero()[0])
                path = tensor.sources[role].path
                raise NonFiniteError(
                    f"{path}: {tensor.name!r} of {role} holds {float(chunk[at]):g} (element {first + at})",
                    "the checkpoint is probably broken; --allow-nonfinite merges it all the same",
                )


class _Slot:
    """The host memory of one chunk: each model's bytes, and the output's."""

    def __init__(self, roles: tuple[str, ...], elements: int, *, pinned: bool) -> None:
        self.raw = {role: Bytes(elements * 8, pinned=pinned) for role in roles}
        self.out = Bytes(elements * 8, pinned=pinned)
        if pinned:
            self.done = torch.cuda.Event()


_Step = tuple[_Slot, dict[str, int], memoryview]


def _finite(values: torch.Tensor) -> bool:
    """Whether all are finite, by their sum; a sum that overflowed is looked at closely."""
    return math.isfinite(values.sum(dtype=torch.float32)) or bool(values.to(torch.float64).isfinite().all())


def _width(entry: TensorEntry) -> int:
    """Bytes of an element."""
    return entry.nbytes // max(1, math.prod(entry.shape))
