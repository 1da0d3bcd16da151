"""A merge from memory to memory: the models' tensors are held on the device, and merged ones go where they are used.

It is the Worker that a merge from disk has, in the same pieces, so that the same bits come out; only where the numbers come from
and where they go differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import INTEGER, torch_dtype
from amatax.planning.plan import PlannedTensor
from amatax.streaming.buffers import Bytes, Files
from amatax.streaming.chunks import Hashes, TensorResult, Worker
from amatax.streaming.nonfinite import check_copy
from amatax.streaming.pieces import Merging, Part, Slot, Source, sources_of

PIECE = 1 << 24  # bytes that are read at once on their way to another device
NOTHING = memoryview(b"")


class Target(NamedTuple):
    """Where a merged tensor goes.

    Attributes:
        memory: (elements,), of the output's dtype, on the device.
        finish: called when it is full.
    """

    memory: torch.Tensor
    finish: Callable[[], None]


class Held:
    """Tensors of checkpoints on a device, as they are on disk; those that several models share are there once.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tensors: dict[tuple[Path, int], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def missing(self, entries: Iterable[TensorEntry]) -> dict[tuple[Path, int], TensorEntry]:
        """Those that are not held yet, each once."""
        wanted: dict[tuple[Path, int], TensorEntry] = {}
        for entry in entries:
            place = (entry.path, entry.offset)
            known = self._tensors.get(place)
            if entry.nbytes and (known is None or known.nbytes < entry.nbytes):
                wanted[place] = max(entry, wanted.get(place, entry), key=lambda e: e.nbytes)
        return wanted

    def read(self, entries: Iterable[TensorEntry], advance: Callable[[int], None] = lambda n: None) -> None:
        """Read those that are missing.

        Raises:
            InputChangedError: if a file has become shorter.
        """
        with Files() as files:
            for place, entry in self.missing(entries).items():
                there = torch.empty(entry.nbytes, dtype=torch.uint8, device=self.device)
                room = Bytes(min(PIECE, entry.nbytes))
                for begin in range(0, entry.nbytes, PIECE):
                    n = min(PIECE, entry.nbytes - begin)
                    files.read(entry.path, room.view[:n], entry.offset + begin)
                    there[begin : begin + n].copy_(room.tensor[:n])
                    advance(n)
                self._tensors[place] = there.view(torch_dtype(entry.dtype))

    def numbers(self, source: Source, first: int, n: int) -> torch.Tensor:
        """Elements of a tensor, (n,), from `first` on: the memory itself, not to be written to."""
        return self._tensors[source.path, source.offset][first : first + n]

    def whole(self, entry: TensorEntry) -> torch.Tensor:
        """A tensor of its shape: the memory itself, not to be written to."""
        return self._tensors[entry.path, entry.offset][: math.prod(entry.shape)].view(entry.shape)


class HeldWorker(Worker):
    """Merges held tensors into memory, one at a time.

    Args:
        held: what the models hold; of adapters the factors are read from their files.
        target: where a tensor goes; None: nowhere, it is left out.
        arguments, options: a Worker's.
    """

    def __init__(
        self, held: Held, target: Callable[[PlannedTensor], Target | None], *arguments: Any, **options: Any
    ) -> None:
        self.held, self.target = held, target
        super().__init__(*arguments, **{**options, "sampled": frozenset()})

    def _allocate(self) -> None:
        self.stream = None  # nothing crosses a bus
        super()._allocate()

    def _make_slots(self) -> list[Slot]:
        return [Slot((), 1, pinned=False)]

    def run(self, tensor: PlannedTensor) -> TensorResult:
        """Merge one tensor into its target; what comes back knows of no checksums.

        Raises:
            NonFiniteError: as a Worker does.
        """
        target = self.target(tensor)
        if target is None:
            return TensorResult()
        self.memory = target.memory
        super().run(tensor)
        target.finish()
        return TensorResult()

    def _numbers(self, slot: Slot, source: Source, first: int, n: int) -> torch.Tensor:
        return self.held.numbers(source, first, n)

    def _read_all(
        self, slot: Slot, sources: list[Source], first: int, n: int, hashes: Hashes
    ) -> dict[str, torch.Tensor]:
        return {source.role: self.held.numbers(source, first, n) for source in sources}

    def _out(self, slot: Slot, dtype: torch.dtype, first: int, n: int) -> torch.Tensor:
        return self.memory[first : first + n]

    def _land(self, part: Part, chunk: Merging, result: TensorResult) -> memoryview:
        self._check(part, chunk, result)
        return NOTHING

    def _copies(self, part: Part, hashes: Hashes, result: TensorResult) -> Iterator[memoryview]:
        tensor, copied = part.tensor, part.tensor.copy_of or "sft"
        (source,) = (source for source in sources_of(tensor) if source.role == copied)
        for first, n in self._chunks(part.elements):
            numbers = self.held.numbers(source, first, n)
            if tensor.dtype not in INTEGER and not self.allow_nonfinite:
                check_copy(tensor, copied, numbers, first, self.files)
            self.memory[first : first + n].copy_(numbers)
            yield NOTHING
