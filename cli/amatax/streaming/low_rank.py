"""What an adapter makes of a model's tensor, in whatever pieces the tensor comes: W + scale * b @ a, and DoRA's lengths.

The product is made of whole rows, tile by tile, and the tiles stand at multiples of their height: where a chunk begins or ends
changes no bit of the result. It is never whole, and not rounded before the merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import torch_dtype
from amatax.planning.memory import CPU_BLOCK
from amatax.streaming.buffers import Bytes, Files

GPU_TILE = 1 << 21  # elements: launches do not show
LOWEST = 32  # rows of a tile: a product of fewer spends its time on packing the right factor
Seen = Callable[[memoryview], None]  # gets the adapter's bytes as they are read


class Delta:
    """One adapted tensor's part of the adapter, read once.

    Args:
        entry: of the tensor.
        compute: dtype of the products, float32 or float64.
        device: where they are made.
        files: to read from.
        seen: told the adapter's bytes, in their order.
    """

    def __init__(
        self,
        entry: TensorEntry,
        compute: torch.dtype,
        device: torch.device,
        files: Files,
        seen: Seen = lambda view: None,
    ) -> None:
        change = entry.delta
        assert change is not None
        self.entry, self.files, self.compute, self.device = entry, files, compute, device
        self.rows, self.columns = entry.shape[0], math.prod(entry.shape[1:])
        if change.a is None:  # a bias: one column
            self.left = self._read(change.b, seen).view(-1, 1)
            self.right = torch.ones(1, 1, dtype=compute, device=device)
        else:
            a, b = self._read(change.a, seen), self._read(change.b, seen)
            a, b = a.view(a.shape[0], -1), b.view(b.shape[0], -1)
            self.left, self.right = (a.t().contiguous(), b.t().contiguous()) if change.transposed else (b, a)
        self.left.mul_(change.scale)
        tile = CPU_BLOCK if device.type == "cpu" else GPU_TILE
        self.height = max(LOWEST, tile // max(1, self.columns))  # rows
        self._room = torch.empty(min(self.height, self.rows) * self.columns, dtype=compute, device=device)
        self._at = -1  # the tile that stands in it
        self._by_column = change.transposed  # an output is a column
        self.factors: torch.Tensor | None = None
        if change.magnitude is not None:
            magnitude = self._read(change.magnitude, seen).flatten()
            self.factors = magnitude / self._lengths()

    def add_to(self, numbers: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """The adapted values of a piece of the tensor.

        Args:
            numbers: (n,), the model's own, from element `first` on; float32 or float64.
            out: (n,), for the result; it may be `numbers`.
        """
        done, span = 0, self.height * self.columns
        while done < len(numbers):
            index, begin = divmod(first + done, span)
            product = self._tile(index)
            n = min(len(numbers) - done, len(product) - begin)
            piece = slice(done, done + n)
            torch.add(numbers[piece], product[begin : begin + n].to(numbers.device), out=out[piece])
            if self.factors is not None:
                out[piece].mul_(self._factors(index, begin, n).to(out.device))
            done += n

    def _tile(self, index: int) -> torch.Tensor:
        """The product's rows from `index` times the height on, flat."""
        begin = index * self.height
        rows = min(self.height, self.rows - begin)
        product = self._room[: rows * self.columns]
        if self._at != index:
            torch.mm(self.left[begin : begin + rows], self.right, out=product.view(rows, self.columns))
            self._at = index
        return product

    def _factors(self, index: int, begin: int, n: int) -> torch.Tensor:
        """DoRA's factor of each of `n` elements of a tile."""
        assert self.factors is not None
        first = index * self.height
        rows = min(self.height, self.rows - first)
        factors = self.factors[None, :] if self._by_column else self.factors[first : first + rows, None]
        return factors.expand(rows, self.columns).reshape(-1)[begin : begin + n]

    def _lengths(self) -> torch.Tensor:
        """The length of every output's weights with the change in them, from a pass over the tensor: (outputs,).

        As DoraLinearLayer.get_weight_norm of PEFT has it; squares are summed in float64.
        """
        sums = torch.zeros(self.columns if self._by_column else self.rows, dtype=torch.float64, device=self.device)
        width = self.entry.nbytes // max(1, self.rows * self.columns)
        raw = Bytes(len(self._room) * width)
        for index in range(math.ceil(self.rows / self.height)):
            product = self._tile(index)
            n, begin = len(product), index * self.height
            self.files.read(self.entry.path, raw.view[: n * width], self.entry.offset + begin * self.columns * width)
            numbers = raw.numbers(torch_dtype(self.entry.dtype), n).to(self.device).to(self.compute)
            squares = (numbers + product).view(-1, self.columns).double().square_()
            if self._by_column:
                sums += squares.sum(0)
            else:
                sums[begin : begin + len(squares)] = squares.sum(1)
        return sums.sqrt_().to(self.compute)

    def _read(self, entry: TensorEntry, seen: Seen) -> torch.Tensor:
        """One of the adapter's tensors, in the compute dtype on the device."""
        raw = Bytes(max(1, entry.nbytes))
        view = raw.view[: entry.nbytes]
        self.files.read(entry.path, view, entry.offset)
        seen(view)
        numbers = raw.numbers(torch_dtype(entry.dtype), math.prod(entry.shape)).view(entry.shape)
        return numbers.to(self.device).to(self.compute, copy=True)
