"""How two changes of the base become one: the weighted sum; or, as TIES does, a sign elected for each element, and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from amatax.methods._compiled import array, loops

if TYPE_CHECKING:
    import torch

TINY = 2.0**-125  # gives a sum of zero its sign; other sums are far larger


class Combining(NamedTuple):
    """What is made of the changes of SFT and RLHF."""

    ratio: float  # the share of RLHF: they are weighted by 1 - ratio and ratio
    scale: float  # of what comes of them
    elects: bool  # the mean of those that agree, not the sum

    @property
    def weights(self) -> tuple[float, float]:
        return 1 - self.ratio, self.ratio


def in_one_pass(
    loop: str, tensors: Mapping[str, torch.Tensor], out: torch.Tensor | None, how: Combining, *arguments: object
) -> torch.Tensor | None:
    """The merged elements by a compiled loop that also takes the changes and what it wants of them; None where torch has to do it.

    Args:
        loop: its name in `amatax.methods._loops`.
        tensors: `base`, `sft` and `rlhf`.
        out: memory for the result, in its dtype; that of a model will do, too.
        arguments: what the loop takes besides.
    """
    import torch

    base = tensors["base"]
    models = base, tensors["sft"], tensors["rlhf"]
    compiled = loops(*models)
    if compiled is None or (how.elects and not 0 < how.ratio < 1):
        return None
    if out is None or not loops(out):
        out = base.new_empty(len(base), dtype=torch.promote_types(base.dtype, torch.float32))
    weights = how.weights if how.elects else tuple(weight * how.scale for weight in how.weights)
    getattr(compiled, loop)(*map(array, (*models, out)), (how.elects, *weights, how.scale), *arguments)
    return out


def combined(sft: torch.Tensor, rlhf: torch.Tensor, base: torch.Tensor, how: Combining) -> torch.Tensor:
    """base + scale * (the weighted sum, or the disjoint mean) of two changes, by torch's operations.

    Args:
        sft, rlhf: the changes, of one shape; both are used up.
        base: what they are added to, of their dtype or bfloat16.
        how: weights, scale, and which of both.
    """
    if how.elects:
        return agreed(sft, rlhf, how.ratio, base, how.scale)
    one, other = (weight * how.scale for weight in how.weights)
    return sft.mul_(one).add_(rlhf.mul_(other)).add_(0.0).add_(base.to(sft.dtype))


def agreed(sft: torch.Tensor, rlhf: torch.Tensor, ratio: float, base: torch.Tensor, scale: float) -> torch.Tensor:
    """base + scale * the disjoint mean (arXiv 2306.01708, Section 4.2) of two changes weighted by 1 - ratio and ratio.

    The elected sign is that of the weighted sum; of a sum of zero it is plus. The weighted changes of that sign are summed up and
    divided by the sum of their weights; a change of zero, such as a dropped one, agrees with nothing. Where none agrees: zero, and of
    zeros always the positive one (the smaller of 0 and -0 is either, in torch).

    Args:
        sft, rlhf: the changes, of one shape; both are used up.
        ratio: the share of RLHF. Outside 0..1 a weight is negative, and turns its change around.
        base: what the changes are added to, of their dtype or bfloat16.
        scale: of the mean.
    """
    import torch

    weights = 1 - ratio, ratio
    total = (sft * weights[0]).add_(rlhf * weights[1])  # each rounded by itself: opposite ones cancel out
    if not 0 < ratio < 1:
        return _weighed(sft, rlhf, weights, total).mul_(scale).add_(0.0).add_(base)
    # where both have one sign the mean is the weighted sum; else it is the change of the elected sign, the larger or the smaller one
    # (comparisons and masks cost torch several times what arithmetic does: here a quotient by zero says "else")
    smaller, larger = torch.minimum(sft, rlhf), torch.maximum(sft, rlhf)
    alike = torch.threshold_(sft.sign_().mul_(rlhf.sign_()), 0.5, 0.0)
    return total.masked_fill_(total == 0, TINY).div_(alike).clamp_(smaller, larger).mul_(scale).add_(0.0).add_(base)


def _weighed(sft: torch.Tensor, rlhf: torch.Tensor, weights: tuple[float, float], total: torch.Tensor) -> torch.Tensor:
    """The same for any weights, by its definition."""
    import torch

    sign = torch.copysign(torch.ones_like(total), total)
    one, other = (
        change.mul_(sign if weight >= 0 else -sign).clamp_min_(0)
        for change, weight in zip((sft, rlhf), weights, strict=True)
    )
    agreeing = (one * abs(weights[0])).add_(other, alpha=abs(weights[1]))
    divisor = one.sign_().mul_(weights[0]).add_(other.sign_(), alpha=weights[1])
    return agreeing.div_(divisor.masked_fill_(divisor == 0, 1)).mul_(sign)
