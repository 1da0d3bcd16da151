"""A transformers model whose weights are merged at the moment they are used, differentiable in the ratios (AMA, Eq. 8).

Every parameter keeps both models' tensors in the dtype they are stored in; the merged one exists while its layer runs. The kernel
is the merge method's own. Backward needs a weight again for its layer's input gradient: it is merged again instead of kept, and
its gradient goes straight into one number per group, d L/d ratio = <d L/d W, d W/d ratio>.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from amatax.checkpoints.dtypes import INTEGER
from amatax.errors import CheckpointError
from amatax.methods import kernel as method_kernel
from amatax.planning.plan import Plan

CHUNK = 1 << 20  # elements that are widened at once
LOADS = "does transformers load it by itself? A checkpoint with code of its own needs --trust-remote-code"
Kernel = Callable[..., torch.Tensor]


class MergedModel:
    """Both models in one, at ratios that can be set.

    Attributes:
        model: the transformers model, in evaluation mode; run it inside `merging()`.
        notes: where the fit cannot do what the merge does.
        variables: float64 (unknowns,), on the CPU; its gradient is what a fit wants.
    """

    def __init__(self, model: Any, rows: list[tuple[float, ...]], kernel: Kernel, compute: torch.dtype) -> None:
        self.model, self.kernel, self.compute = model, kernel, compute
        self.offsets = torch.tensor([row[0] for row in rows], dtype=torch.float64)
        self.slopes = torch.tensor([row[1:] for row in rows], dtype=torch.float64).reshape(len(rows), -1)
        self.variables = torch.zeros(self.slopes.shape[1], dtype=torch.float64, requires_grad=True)
        self.notes: list[str] = []
        self._moves = self.slopes.abs().sum(1) > 0
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

    def merge(self, sft: torch.Tensor, rlhf: torch.Tensor, group: int) -> torch.Tensor:
        """One parameter, merged, in the compute dtype."""
        ratio = self._ratios[group]
        if not self._moves[group]:
            ratio = ratio.detach()
        merged: torch.Tensor = _Merge.apply(sft, rlhf, ratio, self.kernel, self.compute)
        if torch.is_grad_enabled():
            self._live[merged.untyped_storage().data_ptr()] = (weakref.ref(merged), (sft, rlhf, float(ratio.detach())))
        return merged

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
        return _merged(sft, rlhf, ratio, self.kernel, self.compute).as_strided(size, stride, offset)


class _Merge(torch.autograd.Function):
    """(sft, rlhf, ratio) -> merged; backward goes to the ratio alone."""

    @staticmethod
    def forward(
        ctx: Any, sft: torch.Tensor, rlhf: torch.Tensor, ratio: torch.Tensor, kernel: Kernel, compute: torch.dtype
    ) -> torch.Tensor:
        ctx.both, ctx.ratio, ctx.kernel = (sft, rlhf), float(ratio), kernel
        return _merged(sft, rlhf, ctx.ratio, kernel, compute)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        sft, rlhf = (tensor.flatten() for tensor in ctx.both)
        grad = grads[0].flatten()
        total = torch.zeros((), dtype=torch.float64)
        wide = torch.float64 if grad.dtype is torch.float64 else torch.float32
        for begin in range(0, len(grad), CHUNK):
            piece = slice(begin, begin + CHUNK)
            with torch.enable_grad():
                ratio = torch.tensor(ctx.ratio, dtype=wide, device=grad.device, requires_grad=True)
                merged = ctx.kernel({"sft": sft[piece].to(wide), "rlhf": rlhf[piece].to(wide)}, ratio)
                (slope,) = torch.autograd.grad(merged, ratio, grad[piece].to(wide))
            total += slope.to("cpu", torch.float64)
        return None, None, total, None, None


def _merged(sft: torch.Tensor, rlhf: torch.Tensor, ratio: float, kernel: Kernel, compute: torch.dtype) -> torch.Tensor:
    """kernel(sft, rlhf) in the compute dtype; what is stored narrower is widened piece by piece and not rounded again."""
    if sft.dtype == rlhf.dtype == compute:
        return kernel({"sft": sft, "rlhf": rlhf}, ratio)
    merged = torch.empty_like(sft, dtype=compute)
    flat, a, b = merged.view(-1), sft.view(-1), rlhf.view(-1)
    wide = torch.promote_types(compute, torch.float32)
    for begin in range(0, len(flat), CHUNK):
        piece = slice(begin, begin + CHUNK)
        flat[piece] = kernel({"sft": a[piece].to(wide), "rlhf": b[piece].to(wide)}, ratio)
    return merged


class _Merging(nn.Module):
    """The parametrization of one parameter: the registered original is SFT's."""

    rlhf: torch.Tensor

    def __init__(self, rlhf: torch.Tensor, owner: MergedModel, group: int) -> None:
        super().__init__()
        self.register_buffer("rlhf", rlhf, persistent=False)
        self._owner, self._group = owner, group

    def forward(self, sft: torch.Tensor) -> torch.Tensor:
        return self._owner.merge(sft, self.rlhf, self._group)


def load_merged_model(
    plan: Plan,
    groups: dict[str, int],
    rows: list[tuple[float, ...]],
    *,
    device: torch.device | str = "cpu",
    compute: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> MergedModel:
    """Load SFT and RLHF with transformers and join them.

    Args:
        plan: of the recipe.
        groups: the group of every tensor, by its name on disk.
        rows: (constant, slopes) of each group's ratio.
        compute: dtype of the merged weights and of the forward pass; that of the checkpoint by default.

    Raises:
        CheckpointError: if transformers cannot load a model, or joins tensors of different ratios into one parameter.
    """
    sft = _load(plan, "sft", trust_remote_code)
    group_of = _parameter_groups(plan, sft, groups)
    rlhf = _load(plan, "rlhf", trust_remote_code)
    kernel = method_kernel(plan.recipe.merge.method)
    owner = MergedModel(sft, rows, kernel, compute or sft.dtype)
    theirs = dict(rlhf.named_parameters(remove_duplicate=False))
    saved, others = sft.state_dict().keys(), dict(rlhf.named_buffers())
    for name, buffer in sft.named_buffers():
        if name in saved and buffer.is_floating_point() and not torch.equal(buffer, others[name]):
            owner.notes.append(f"{name!r} is a buffer that differs: the fit uses sft's, the merge averages it")
    for name, parameter in list(sft.named_parameters(remove_duplicate=False)):
        parameter.requires_grad_(False)
        if name not in theirs or theirs[name].shape != parameter.shape:
            hint = "do both configs name the same class and sizes?"
            raise CheckpointError(f"{name!r}, as transformers loads it, is another parameter in rlhf", hint)
    for name, group in group_of.items():
        path, _, leaf = name.rpartition(".")
        merging = _Merging(theirs[name].detach(), owner, group)
        parametrize.register_parametrization(sft.get_submodule(path), leaf, merging, unsafe=True)
    sft.eval().to(device)
    return owner


def _load(plan: Plan, role: str, trust_remote_code: bool) -> Any:
    import transformers

    checkpoint = plan.checkpoints[role]
    model_class = getattr(transformers, checkpoint.loaded_by, transformers.AutoModelForCausalLM)
    stored = {entry.dtype for entry in checkpoint.tensors.values()}
    dtype = torch.float64 if "F64" in stored else torch.float32 if "F32" in stored else "auto"  # nothing is rounded
    try:
        return model_class.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{role} ({checkpoint.ref}): transformers cannot load it: {reason}", LOADS) from error


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
    return found
