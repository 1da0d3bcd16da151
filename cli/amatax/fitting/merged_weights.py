"""The arithmetic of weights that are merged when they are used: pieces widened in place, their derivative in the ratio.

The kernel and its slope are the merge method's own (`amatax.methods`); nothing here knows which model the weights are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from amatax.fitting.adapted import Factors

PIECE = {"cpu": 1 << 19}  # elements that are widened at once: what the second-level cache holds
LARGE_PIECE = 1 << 24  # on other devices
ROWS = 1 << 21  # elements of a weight that a product takes at once: enough for its full speed
HALF_UNITS = {  # what CPUs that multiply half precision call it
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
Both = tuple[torch.Tensor, torch.Tensor | Factors]  # a parameter of SFT and of RLHF


class Method(NamedTuple):
    """A merge method, as amatax.methods describes it."""

    kernel: Callable[..., torch.Tensor]
    slope: Callable[..., torch.Tensor]
    copies: dict[float, str]


class Merge(torch.autograd.Function):
    """(sft, rlhf, ratio) -> merged; backward goes to the ratio alone."""

    @staticmethod
    def forward(
        ctx: Any,
        sft: torch.Tensor,
        rlhf: torch.Tensor | Factors,
        ratio: torch.Tensor,
        method: Method,
        compute: torch.dtype,
    ) -> torch.Tensor:
        ctx.both, ctx.ratio, ctx.method = (sft, rlhf), float(ratio), method
        return merged_weight(ctx.both, ctx.ratio, method, compute)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return None, None, _ratio_gradient(ctx.both, ctx.ratio, ctx.method, grads[0]), None, None


class MergedLinear(torch.autograd.Function):
    """inputs (..., in), weights (out, in) of both models, ratio -> inputs @ merged^T; the merged weight is never whole."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, both: Both, ratio: torch.Tensor, method: Method, compute: torch.dtype
    ) -> torch.Tensor:
        ctx.both, ctx.ratio, ctx.method, ctx.compute = both, float(ratio), method, compute
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(inputs)
        rows = inputs.flatten(0, -2)
        output = inputs.new_empty(len(rows), len(both[0]))
        for part in _parts(both[0], compute):
            torch.mm(rows, merged_weight(_part(both, part), ctx.ratio, method, compute).t(), out=output[:, part])
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        outer, inner, total = grads[0].flatten(0, -2), None, None
        inputs = ctx.saved_tensors[0].flatten(0, -2) if ctx.needs_input_grad[2] else None
        exact = outer
        if inputs is not None:  # of the ratio's gradient; the inputs' own stays in the compute dtype
            exact, inputs = _widen_if_slow(outer), _widen_if_slow(inputs)
        for part in _parts(ctx.both[0], ctx.compute):
            given, both, weight = outer[:, part], _part(ctx.both, part), None
            if inputs is not None and ctx.needs_input_grad[0]:
                weight, slope = _merged_again(both, ctx.ratio, ctx.method, ctx.compute, exact[:, part].t() @ inputs)
            elif inputs is not None:
                slope = _ratio_gradient(both, ctx.ratio, ctx.method, exact[:, part].t() @ inputs)
            else:
                weight = merged_weight(both, ctx.ratio, ctx.method, ctx.compute)
            if inputs is not None:
                total = slope if total is None else total + slope
            if weight is not None:
                inner = given @ weight if inner is None else inner.addmm_(given, weight)
        return None if inner is None else inner.view(*grads[0].shape[:-1], -1), None, total, None, None


def _widen_if_slow(factor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, where a CPU only imitates its products: slower, and less exact."""
    if factor.device.type != "cpu" or factor.dtype not in HALF_UNITS:
        return factor
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return factor if any(capabilities.get(unit) for unit in HALF_UNITS[factor.dtype]) else factor.float()


def _parts(weight: torch.Tensor, compute: torch.dtype) -> list[slice]:
    """Rows of a weight that are merged at once; half precision is summed up in one go."""
    rows, columns = weight.shape
    step = rows if compute.itemsize < 4 else max(1, ROWS // columns)
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _part(both: Both, part: slice) -> Both:
    sft, rlhf = both
    return sft[part], rlhf.part(part) if isinstance(rlhf, Factors) else rlhf[part]


def merged_weight(both: Both, ratio: float, method: Method, compute: torch.dtype) -> torch.Tensor:
    """A parameter in the compute dtype; what is stored narrower is widened piece by piece and not rounded again."""
    end, (sft, rlhf) = method.copies.get(ratio), both
    if end == "sft":
        return sft.to(compute)
    if isinstance(rlhf, Factors):
        if end is not None:
            method = method._replace(kernel=_of_rlhf)
    elif end is not None:
        return rlhf.to(compute)
    elif sft.dtype == rlhf.dtype == compute:
        return method.kernel({"sft": sft, "rlhf": rlhf}, ratio)
    merged, wide = torch.empty_like(both[0], dtype=compute), torch.promote_types(compute, torch.float32)
    flat = merged.view(-1)
    for piece, tensors in _widened(both, wide):
        if compute == wide:
            method.kernel(tensors, ratio, flat[piece])
        else:
            flat[piece] = method.kernel(tensors, ratio)
    return merged


def _of_rlhf(tensors: dict[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """A kernel that takes RLHF's."""
    return tensors["rlhf"] if out is None else out.copy_(tensors["rlhf"])


def _merged_again(
    both: Both, ratio: float, method: Method, compute: torch.dtype, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the parameter in the compute dtype, <grad, its derivative in the ratio>), widened once for both."""
    wide = torch.promote_types(compute, torch.float32)
    if compute != wide or ratio in method.copies:
        return merged_weight(both, ratio, method, compute), _ratio_gradient(both, ratio, method, grad)
    merged, total = torch.empty_like(both[0], dtype=compute), 0.0
    flat, slopes = merged.view(-1), grad.flatten()
    for piece, tensors in _widened(both, wide):
        total += float(torch.dot(method.slope(tensors, ratio), slopes[piece]))
        method.kernel(tensors, ratio, flat[piece])
    return merged, torch.tensor(total, dtype=torch.float64)


def _ratio_gradient(both: Both, ratio: float, method: Method, grad: torch.Tensor) -> torch.Tensor:
    """<gradient of the merged tensor, its derivative in the ratio>, float64."""
    flat, total = grad.flatten(), 0.0
    wide = torch.promote_types(flat.dtype, torch.float32)
    for piece, tensors in _widened(both, wide):
        total += float(torch.dot(method.slope(tensors, ratio), flat[piece].to(wide)))
    return torch.tensor(total, dtype=torch.float64)


def _widened(both: Both, wide: torch.dtype) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
    """Both, piece by piece, in memory that the next piece takes again; what has the dtype already is not copied."""
    if isinstance(both[1], Factors):
        yield from _multiplied(both[0], both[1], wide)
        return
    flat = [both[0].view(-1), both[1].view(-1)]
    size = min(_piece(flat[0]), len(flat[0])) or 1
    room = [None if t.dtype == wide else torch.empty(size, dtype=wide, device=t.device) for t in flat]
    for begin in range(0, len(flat[0]), size):
        piece = slice(begin, min(begin + size, len(flat[0])))
        count = piece.stop - piece.start
        sft, rlhf = (t[piece] if r is None else r[:count].copy_(t[piece]) for t, r in zip(flat, room, strict=True))
        yield piece, {"sft": sft, "rlhf": rlhf}


def _multiplied(
    sft: torch.Tensor, factors: Factors, wide: torch.dtype
) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
    """Both, some rows at a time: the product is never whole."""
    rows, columns = sft.shape
    step = max(1, _piece(sft) // max(1, columns))
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        base = sft[part].to(wide)
        numbers = {"sft": base.view(-1), "rlhf": factors.part(part).on(base).view(-1)}
        yield slice(part.start * columns, part.stop * columns), numbers


def _piece(tensor: torch.Tensor) -> int:
    return PIECE.get(tensor.device.type, LARGE_PIECE)
