"""A transformers model whose weights are merged at the moment they are used, differentiable in the ratios (AMA, Eq. 8).

Every parameter keeps both models' tensors in the dtype they are stored in (of an RLHF model that is SFT's with an adapter: the
adapter's factors instead of a second tensor); the merged one exists while its layer runs. The kernel
is the merge method's own. Backward needs a weight again for its layer's input gradient: it is merged again instead of kept, and
its gradient goes straight into one number per group, d L/d ratio = <d L/d W, d W/d ratio>.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from amatax.checkpoints.dtypes import INTEGER
from amatax.errors import AmataxError, CheckpointError
from amatax.fitting.adapted import Factors, low_rank_changes
from amatax.fitting.loading import load_model
from amatax.fitting.ranks import shard
from amatax.methods import kernel as method_kernel
from amatax.methods import method_copies, method_needs, method_slope
from amatax.planning.plan import Plan
from amatax.recipes.schema import Recipe

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


class MergedModel:
    """Both models in one, at ratios that can be set.

    Attributes:
        model: the transformers model, in evaluation mode; run it inside `merging()`.
        notes: where the fit cannot do what the merge does.
        variables: float64 (unknowns,), on the CPU; its gradient is what a fit wants.
        device: where it runs.
        lockstep: the processes must run it equally often.
    """

    def __init__(self, model: Any, rows: list[tuple[float, ...]], method: Method, compute: torch.dtype) -> None:
        self.model, self.method, self.compute = model, method, compute
        self.offsets = torch.tensor([row[0] for row in rows], dtype=torch.float64)
        self.slopes = torch.tensor([row[1:] for row in rows], dtype=torch.float64).reshape(len(rows), -1)
        self.variables = torch.zeros(self.slopes.shape[1], dtype=torch.float64, requires_grad=True)
        self.notes: list[str] = []
        self.device, self.lockstep = torch.device("cpu"), False
        self._moves = self.slopes.abs().sum(1) > 0  # the groups whose gradient is wanted
        self._ratios: torch.Tensor = self.offsets
        self._live: dict[int, tuple[weakref.ref[torch.Tensor], tuple[Any, ...]]] = {}

    @contextmanager
    def merging(self, values: torch.Tensor | None = None) -> Iterator[None]:
        """Run the model at the ratios of `variables` (with gradients), or at fixed ones per group, float64 (groups,)."""
        if values is None:
            self._ratios = self.offsets + self.slopes @ self.variables
        else:
            self._ratios = values
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield
        self._live.clear()

    def hold_mean(self, shares: Sequence[float] | None) -> None:
        """Differentiate along sum(shares * variables) = constant alone, or everywhere (None).

        Groups that follow the mean (the head, by default) then need no gradient; what `variables` gets is the gradient up to a
        multiple of the shares.
        """
        slopes = self.slopes
        if shares is not None and any(shares):
            normal = torch.tensor(shares, dtype=torch.float64)
            slopes = slopes - (slopes @ normal / (normal @ normal))[:, None] * normal
        self._moves = slopes.abs().sum(1) > 1e-12

    def everywhere(self, ratio: float) -> torch.Tensor:
        """Ratios per group that make it one of the two models: 0 is SFT, 1 is RLHF."""
        return torch.full_like(self.offsets, ratio)

    def checkpoint_activations(self) -> None:
        """Keep only each layer's input, and run the layer again in backward."""
        enable = getattr(self.model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.model.train()  # transformers looks at this; nothing may be dropped all the same
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in [n for n, value in vars(module).items() if "drop" in n and isinstance(value, float)]:
                setattr(module, name, 0.0)

    def merge(self, sft: torch.Tensor, rlhf: torch.Tensor | Factors, group: int) -> torch.Tensor:
        """One parameter, merged, in the compute dtype."""
        ratio = self._ratios[group]
        if self._moves[group] and torch.is_grad_enabled():
            merged: torch.Tensor = _Merge.apply(sft, rlhf, ratio, self.method, self.compute)
        else:
            merged = _merged((sft, rlhf), float(ratio.detach()), self.method, self.compute)
        if torch.is_grad_enabled():
            self._live[merged.untyped_storage().data_ptr()] = (weakref.ref(merged), (sft, rlhf, float(ratio.detach())))
        return merged

    def linear(self, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        """nn.Linear's forward (..., in) -> (..., out), its weight merged some rows at a time."""
        (merging,) = module.parametrizations.weight
        ratio, sft = self._ratios[merging.group], module.parametrizations.weight.original
        if not self._moves[merging.group]:
            ratio = ratio.detach()
        output: torch.Tensor = _Linear.apply(inputs, (sft, merging.other()), ratio, self.method, self.compute)
        return output if module.bias is None else output + module.bias

    def embedding(self, module: Any, ids: torch.Tensor) -> torch.Tensor:
        """nn.Embedding's forward: the rows that are asked for, merged."""
        (merging,) = module.parametrizations.weight
        sft, other = F.embedding(ids, module.parametrizations.weight.original), merging.other()
        rlhf = other.at(ids, sft) if isinstance(other, Factors) else F.embedding(ids, other)
        return self.merge(sft, rlhf, merging.group)

    def _pack(self, saved: torch.Tensor) -> Any:
        """What autograd keeps of a merged weight: how to merge it again."""
        found = self._live.get(saved.untyped_storage().data_ptr())
        if found is None or found[0]() is None:  # freed: its memory is another tensor's now
            return saved
        return found[1], saved.size(), saved.stride(), saved.storage_offset()

    def _unpack(self, kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        (sft, rlhf, ratio), size, stride, offset = kept
        return _merged((sft, rlhf), ratio, self.method, self.compute).as_strided(size, stride, offset)


class _Merge(torch.autograd.Function):
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
        return _merged(ctx.both, ctx.ratio, method, compute)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return None, None, _ratio_gradient(ctx.both, ctx.ratio, ctx.method, grads[0]), None, None


class _Linear(torch.autograd.Function):
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
            torch.mm(rows, _merged(_part(both, part), ctx.ratio, method, compute).t(), out=output[:, part])
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
                weight = _merged(both, ctx.ratio, ctx.method, ctx.compute)
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


def _merged(both: Both, ratio: float, method: Method, compute: torch.dtype) -> torch.Tensor:
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
        return _merged(both, ratio, method, compute), _ratio_gradient(both, ratio, method, grad)
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


class _Merging(nn.Module):
    """The parametrization of one parameter: the registered original is SFT's."""

    def __init__(self, rlhf: torch.Tensor | Factors, owner: MergedModel, group: int) -> None:
        super().__init__()
        kept = rlhf if isinstance(rlhf, Factors) else (rlhf,)
        self.low_rank = isinstance(rlhf, Factors)
        self.kept = nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in kept if t is not None)
        self._owner, self.group = owner, group

    def other(self) -> torch.Tensor | Factors:
        """RLHF's."""
        return Factors(*self.kept) if self.low_rank else self.kept[0]

    def forward(self, sft: torch.Tensor) -> torch.Tensor:
        return self._owner.merge(sft, self.other(), self.group)


def fitted_method(recipe: Recipe) -> Method:
    """The recipe's method with its options.

    Raises:
        AmataxError: if it cannot be fitted.
    """
    name, options = recipe.merge.method, recipe.merge.options
    slope = method_slope(name)
    if slope is None or method_needs(name) != ("sft", "rlhf"):
        raise AmataxError(
            f"fit-ratios cannot fit the method {name!r}",
            "it fits methods of sft and rlhf that tell their slope in the ratio, as `average` does",
        )
    return Method(partial(method_kernel(name), **options), partial(slope, **options), method_copies(name))


def load_merged_model(
    plan: Plan,
    groups: dict[str, int],
    rows: list[tuple[float, ...]],
    *,
    device: torch.device | str = "cpu",
    compute: torch.dtype | None = None,
    sharded: bool = False,
    trust_remote_code: bool = False,
) -> MergedModel:
    """Load SFT and RLHF with transformers and join them.

    Args:
        plan: of the recipe.
        groups: the group of every tensor, by its name on disk.
        rows: (constant, slopes) of each group's ratio.
        compute: dtype of the merged weights and of the forward pass; that of the checkpoint by default.
        sharded: spread over the processes of torchrun.

    Raises:
        CheckpointError: if transformers cannot load a model, or joins tensors of different ratios into one parameter.
    """
    sft = _load(plan, "sft", trust_remote_code)
    group_of = _parameter_groups(plan, sft, groups)
    method = fitted_method(plan.recipe)
    owner = MergedModel(sft, rows, method, compute or sft.dtype)
    for _, parameter in list(sft.named_parameters(remove_duplicate=False)):
        parameter.requires_grad_(False)
        parameter.data = parameter.data.contiguous()
    theirs = _rlhf_parameters(plan, sft, owner, trust_remote_code)
    for name, parameter in list(sft.named_parameters(remove_duplicate=False)):
        other = theirs.get(name)
        if other is None or (not isinstance(other, Factors) and other.shape != parameter.shape):
            hint = "do both configs name the same class and sizes?"
            raise CheckpointError(f"{name!r}, as transformers loads it, is another parameter in rlhf", hint)
    for name, group in group_of.items():
        path, _, leaf = name.rpartition(".")
        module = sft.get_submodule(path)
        usual = {nn.Linear: owner.linear, nn.Embedding: owner.embedding}.get(type(module)) if leaf == "weight" else None
        merging = _Merging(theirs[name], owner, group)
        parametrize.register_parametrization(module, leaf, merging, unsafe=True)
        if usual is not None:  # `module.weight` stays right for code that takes it by itself
            module.forward = partial(usual, module)
    if sharded:
        shard(sft, plan.model.layers, torch.device(device))
        owner.lockstep = True
    else:
        sft.to(device)
    owner.device = torch.device(device)
    return owner


def _rlhf_parameters(
    plan: Plan, sft: Any, owner: MergedModel, trust_remote_code: bool
) -> dict[str, torch.Tensor | Factors]:
    """RLHF's, by the names that SFT's have."""
    mine = dict(sft.named_parameters(remove_duplicate=False))
    low_rank = low_rank_changes(plan.checkpoints["sft"], plan.checkpoints["rlhf"], mine)
    if low_rank is not None:
        return low_rank
    rlhf = _load(plan, "rlhf", trust_remote_code)
    saved, others = sft.state_dict().keys(), dict(rlhf.named_buffers())
    for name, buffer in sft.named_buffers():
        if name in saved and buffer.is_floating_point() and not torch.equal(buffer, others[name]):
            owner.notes.append(f"{name!r} is a buffer that differs: the fit uses sft's, the merge averages it")
    return {name: p.detach().contiguous() for name, p in rlhf.named_parameters(remove_duplicate=False)}


def _load(plan: Plan, role: str, trust_remote_code: bool) -> Any:
    """One of the two, in a dtype that rounds nothing."""
    checkpoint = plan.checkpoints[role]
    stored = {entry.dtype for entry in checkpoint.tensors.values()}
    wide = "F32" in stored or checkpoint.adapter is not None
    dtype = torch.float64 if "F64" in stored else torch.float32 if wide else "auto"
    return load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)


def _parameter_groups(plan: Plan, model: Any, groups: dict[str, int]) -> dict[str, int]:
    """The group of every parameter, by transformers' own conversion from disk names: a checkpoint whose tensors hold their
    group's number is loaded in the real one's place, and the numbers are read where they arrive."""
    dtype = torch.bfloat16 if len(set(groups.values())) <= 256 else torch.float32  # what holds the numbers exactly
    markers = {
        name: torch.tensor(groups[name], dtype=torch.int64 if tensor.dtype in INTEGER else dtype).expand(tensor.shape)
        for name, tensor in plan.tensors.items()
    }
    marked = type(model).from_pretrained(None, config=model.config, state_dict=markers, dtype=dtype)
    found = {}
    for name, parameter in marked.named_parameters(remove_duplicate=False):
        first = parameter.detach().flatten()[0] if parameter.numel() else torch.tensor(0.0)
        if not bool((parameter == first).all()) or float(first) not in range(len(set(groups.values()))):
            raise CheckpointError(
                f"transformers joins tensors of different ratios into {name!r}",
                "give all of them one ratio: drop the override or the group that tells them apart",
            )
        found[name] = int(first)
    del marked, parameter, first
    gc.collect()  # modules point at each other: without this a third model stays
    return found
