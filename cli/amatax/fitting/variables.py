"""What a fit may move: the blocks' ratios (and a free head's), the mean they keep, and how every tensor follows them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from amatax.planning.names import Anatomy
from amatax.planning.plan import Plan
from amatax.planning.ratios import even_split, plan_blocks, tensor_ratios
from amatax.recipes.schema import Block, Ratios, parse_layers

PLACES = 6  # decimals of a fitted ratio


@dataclass(frozen=True)
class Variables:
    """The unknowns of a fit.

    Attributes:
        names: "block 0", "block 0 attention", "head".
        shares: each one's share in the mean that is held (sums to 1; 0 for a free head).
        words: head, embeddings, norms, other and overrides of the recipe; its blocks are replaced.
        spans: the layers of each block if they are written out, None for the even split.
        groups: two ratios a block, attention and MLP.
        free_head: the last unknown is the head's.
    """

    names: list[str]
    shares: list[Fraction]
    words: Ratios
    spans: list[range] | None
    groups: bool
    free_head: bool

    def uniform(self, level: float) -> list[float]:
        """Every block at one level; a free head where the recipe has it."""
        values = [level] * len(self.names)
        if self.free_head and not isinstance(self.words.head, str):
            values[-1] = self.words.head
        return values

    def ratios(self, values: list[float]) -> Ratios:
        """The recipe's ratios at some values of the unknowns."""
        values = list(values)
        head = values.pop() if self.free_head else self.words.head
        if self.spans is None:
            blocks: list[float | Block] = list(values)
        else:
            width = 2 if self.groups else 1
            blocks = [_block(s, values[i * width : (i + 1) * width]) for i, s in enumerate(self.spans)]
        return self.words.model_copy(update={"blocks": blocks, "head": head})


def choose_variables(
    words: Ratios, model: Anatomy, blocks: int | None, *, groups: bool, free_head: bool, weigh_by_layers: bool
) -> Variables:
    """The unknowns for a model.

    Args:
        words: the recipe's ratios; explicit layer ranges of its blocks are kept if `blocks` is None.
        blocks: how many blocks the layers are split into evenly.
        groups: attention and MLP get ratios of their own.
        free_head: the head's ratio is an unknown too, outside the mean.
        weigh_by_layers: the mean counts each block by its layers (else blocks count alike, AMA Eq. 8).
    """
    written = [block for block in words.blocks if isinstance(block, Block)]
    if blocks is None and written:
        spans, explicit = sorted((parse_layers(block.layers) for block in written), key=lambda span: span.start), True
    else:
        spans, explicit = even_split(model.layers, blocks or len(words.blocks)), groups
    parts = (" attention", " mlp") if groups else ("",)
    names = [f"block {i}{part}" for i in range(len(spans)) for part in parts]
    weights = [Fraction(len(span) if weigh_by_layers else 1, len(parts)) for span in spans for _ in parts]
    shares = [weight / sum(weights) for weight in weights]
    if free_head:
        names, shares = [*names, "head"], [*shares, Fraction(0)]
    return Variables(names, shares, words, spans if explicit else None, groups, free_head)


def tensor_groups(plan: Plan, variables: Variables) -> tuple[dict[str, int], list[tuple[float, ...]]]:
    """How each tensor's ratio follows the unknowns.

    The recipe's words are affine in the unknowns, so what `planning` says at 0 and at each unit vector is the whole rule.

    Returns:
        The group of every tensor name, and for each group (constant, slope for each unknown).
    """
    count = len(variables.names)
    corners = [[0.0] * count] + [[float(i == j) for i in range(count)] for j in range(count)]
    at = []
    for corner in corners:
        ratios = variables.ratios(corner)
        blocks, _ = plan_blocks(plan.recipe, ratios, plan.model.layers)
        at.append(tensor_ratios(plan.recipe, ratios, plan.model, blocks, plan.tied)[0])
    groups: dict[tuple[float, ...], int] = {}
    of_tensor = {}
    for name in plan.tensors:
        zero = at[0][name]
        row = (zero, *(unit[name] - zero for unit in at[1:]))
        of_tensor[name] = groups.setdefault(row, len(groups))
    return of_tensor, list(groups)


def exact_mean(values: list[float], shares: list[Fraction], alpha: float) -> list[float]:
    """Round to PLACES decimals so that the mean is alpha to the last digit where decimals can say it; every value stays in 0..1."""
    rounded = [Fraction(str(round(min(max(v, 0.0), 1.0), PLACES))) for v in values]
    held = [i for i, share in enumerate(shares) if share]
    rest = Fraction(repr(alpha)) - sum(shares[i] * rounded[i] for i in held)
    for i in sorted(held, key=lambda i: -min(rounded[i], 1 - rounded[i])):  # the one with most room takes the rest
        moved = min(max(rounded[i] + rest / shares[i], Fraction(0)), Fraction(1))
        rest -= (moved - rounded[i]) * shares[i]
        rounded[i] = moved
        if not rest:
            break
    return [float(value) for value in rounded]


def _block(span: range, values: list[float]) -> Block:
    layers = f"{span.start}-{span.stop - 1}"
    if len(values) == 2:
        return Block(layers=layers, attention=values[0], mlp=values[1])
    return Block(layers=layers, ratio=values[0])
