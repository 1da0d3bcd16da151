"""A transformers model whose weights are merged at the moment they are used, differentiable in the ratios (AMA, Eq. 8).

Every parameter keeps both models' tensors in the dtype they are stored in (of an RLHF model that is SFT's with an adapter: the
adapter's factors instead of a second tensor); the merged one exists while its layer runs. The kernel
is the merge method's own. Backward needs a weight again for its layer's input gradient: it is merged again instead of kept, and
its gradient goes straight into one number per group, d L/d ratio = <d L/d W, d W/d ratio>.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from amatax.checkpoints.dtypes import INTEGER
from amatax.errors import AmataxError, CheckpointError
from amatax.fitting.adapted import Factors, low_rank_changes
from amatax.fitting.loading import load_model
from amatax.fitting.merged_weights import Merge, MergedLinear, Method, merged_weight
from amatax.fitting.ranks import shard
from amatax.methods import kernel as method_kernel
from amatax.methods import method_copies, method_needs, method_slope
from amatax.planning.plan import Plan
from amatax.recipes.schema import Recipe


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
            merged: torch.Tensor = Merge.apply(sft, rlhf, ratio, self.method, self.compute)
        else:
            merged = merged_weight((sft, rlhf), float(ratio.detach()), self.method, self.compute)
        if torch.is_grad_enabled():
            self._live[merged.untyped_storage().data_ptr()] = (weakref.ref(merged), (sft, rlhf, float(ratio.detach())))
        return merged

    def linear(self, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        """nn.Linear's forward (..., in) -> (..., out), its weight merged some rows at a time."""
        (merging,) = module.parametrizations.weight
        ratio, sft = self._ratios[merging.group], module.parametrizations.weight.original
        if not self._moves[merging.group]:
            ratio = ratio.detach()
        output: torch.Tensor = MergedLinear.apply(inputs, (sft, merging.other()), ratio, self.method, self.compute)
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
        return merged_weight((sft, rlhf), ratio, self.method, self.compute).as_strided(size, stride, offset)


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
