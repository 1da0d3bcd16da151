"""Model Stock (arXiv 2403.19522): from the base towards the average of SFT and RLHF, as far as their changes point one way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from amatax.methods import Chunks
from amatax.methods._combining import Combining
from amatax.methods._magnitudes import EVERYTHING, NOTHING, Kept, merge_trimmed
from amatax.methods._products import products

if TYPE_CHECKING:
    import torch

NEEDS = ("base", "sft", "rlhf")
WIDENS = True


def prepare(chunks: Chunks, ratio: float) -> float:
    """How far to go: 2 cos / (1 + cos) of the angle between both changes of the tensor: the paper's ratio, of two models.

    0 where the changes point apart, or one of them is zero: the base stays.
    """
    dot, one, other = products(chunks, changes=True)
    size = math.sqrt(one) * math.sqrt(other)
    cosine = min(max(dot / size, 0.0), 1.0) if 0 < size < math.inf else 0.0
    return 2 * cosine / (1 + cosine)


def model_stock(
    tensors: Mapping[str, torch.Tensor], ratio: float, out: torch.Tensor | None = None, *, stats: float
) -> torch.Tensor:
    """base + t * ((1 - ratio) * (sft - base) + ratio * (rlhf - base)), t of the angle between both changes; the paper has ratio 0.5.

    Args:
        tensors: `base`, `sft` and `rlhf`, chunks of one shape and dtype (bfloat16, float32 or float64), on one device.
        ratio: the share of RLHF.
        out: memory for the result, in whose dtype it is then; may be that of a model. Not always used.
        stats: t, from `prepare`.

    Returns:
        `out`, or a tensor of the same shape and device, in float32 or wider.
    """
    whole = Kept(NOTHING, EVERYTHING)
    return merge_trimmed(tensors, out, 0, [whole, whole], Combining(ratio, stats, elects=False))
