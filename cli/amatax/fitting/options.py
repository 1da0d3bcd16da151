"""What fit-ratios is asked for, and the fits that makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path

from amatax.errors import AmataxError, Fault, OutputError, PlanError
from amatax.planning.plan import Plan
from amatax.recipes.schema import Recipe

DEFAULT_ALPHA, DEFAULT_BLOCKS = 0.4, 3
PRESET_TOKENS = 512  # Table 3 of the paper


@dataclass(frozen=True)
class FitOptions:
    """How a recipe's ratios are fitted; None leaves it to the recipe's `fit`, then to the default.

    Attributes:
        data: JSONL of prompts and responses of the RLHF model.
        alpha: the mean share of RLHF that is held, or several: a fit each. With `keep` it is found, unless it is given.
        keep: JSONL of prompts with what SFT answers (`amatax distill --role sft` samples it): a tax-aware fit.
        max_kl: bound of the mean KL(SFT || merged) on those, nats per response token, or several: a fit each.
        keep_weight: or: that KL, times this, is added to the NLL.
        blocks: how many.
        groups: attention and MLP apart.
        free_head: the head's ratio is an unknown of its own.
        weigh_by_layers: the mean counts blocks by their layers.
        holdout: a share of the prompts, or a JSONL file.
        max_length: tokens of a sample.
        raw: no chat template.
        most_bad: the share of bad lines that are skipped.
        preset: "paper": Eq. 13 and Table 3 of the paper (one epoch of Adam, 512 tokens) instead of the constrained optimum.
        eps, rate: of the preset; see amatax.fitting.paper.Preset.
        regulariser: strength of the paper's C.5, which holds the middle blocks nearer to alpha; nats per token.
        seed: of the held-out part, the first look, the preset's order and the bootstrap.
        device: cpu, cuda, cuda:N, or auto.
        compute: dtype of the forward pass; float32 on a CPU, the checkpoint's on a GPU.
        batch_tokens: tokens of a batch.
        checkpointing: recompute activations in backward.
        shard: spread both models over the processes of torchrun, a layer at a time gathered (FSDP2).
        trust_remote_code: let transformers run the checkpoint's own code.
        overwrite: replace the recipe that is there.
    """

    data: str | PathLike[str] | None = None
    alpha: float | Sequence[float] = ()
    keep: str | PathLike[str] | None = None
    max_kl: float | Sequence[float] = ()
    keep_weight: float | None = None
    blocks: int | None = None
    groups: bool = False
    free_head: bool = False
    weigh_by_layers: bool = False
    holdout: float | str | PathLike[str] | None = None
    max_length: int | None = 2048
    raw: bool = False
    most_bad: float = 0.0
    preset: str | None = None
    eps: float = 0.1
    rate: float = 4e-5
    regulariser: float = 0.0
    seed: int = 0
    device: str = "auto"
    compute: str | None = None
    batch_tokens: int = 4096
    checkpointing: bool = False
    shard: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False

    @property
    def tokens(self) -> int | None:
        """The longest a sample may be; Table 3 has 512."""
        return self.max_length if self.preset is None else min(self.max_length or PRESET_TOKENS, PRESET_TOKENS)


@dataclass(frozen=True)
class Case:
    """One fit of several.

    Attributes:
        label: tells it from the others.
        alpha: the mean that is held; None: it is found.
        max_kl: the bound on the tax.
    """

    label: str
    alpha: float | None
    max_kl: float | None = None


def fit_cases(recipe: Recipe, options: FitOptions) -> list[Case]:
    """Every alpha; or, for tax-aware fits, every bound, with alpha free unless it was asked for.

    Raises:
        AmataxError: for wishes that do not go together.
    """
    alphas = _several(options.alpha)
    if not alphas and options.keep is None:
        alphas = [recipe.fit.alpha if recipe.fit and recipe.fit.alpha is not None else DEFAULT_ALPHA]
    for alpha in alphas:
        if not 0 <= alpha <= 1:  # NaN, too
            raise AmataxError(f"alpha is {alpha:g}", "it is the mean share of RLHF: a number from 0 to 1")
    _check_preset(options)
    limits = _several(options.max_kl)
    if options.keep is None:
        if limits or options.keep_weight is not None:
            raise AmataxError("--max-kl and --keep-weight need --keep", "name the prompts whose answers must stay")
        return _told_apart([Case(f"{alpha:g}", alpha) for alpha in alphas])
    if bool(limits) == (options.keep_weight is not None):
        hint = "--max-kl bounds the divergence from SFT in nats per token; --keep-weight adds it to the likelihood"
        raise AmataxError("--keep needs --max-kl or --keep-weight, and one of them only", hint)
    if not all(0 < value < math.inf for value in (*limits, options.keep_weight or 1)):
        raise AmataxError("--max-kl and --keep-weight are positive", "0.02 nats per token, or a weight of 1, are usual")
    found = []
    means: list[float | None] = [*alphas] or [None]
    bounds: list[float | None] = [*limits] or [None]
    for mean, bound in product(means, bounds):
        parts = [f"{mean:g}"] if mean is not None else []
        parts += [f"kl{bound:g}"] if bound is not None else []
        found.append(Case("-".join(parts), mean, bound))
    return _told_apart(found)


def _told_apart(cases: list[Case]) -> list[Case]:
    """Each writes a recipe of its own name."""
    for i, case in enumerate(cases):
        if case.label in [other.label for other in cases[:i]]:
            raise AmataxError(
                f"two fits are called {case.label}", "give each alpha and each --max-kl once, to 6 digits"
            )
    return cases


def _check_preset(options: FitOptions) -> None:
    if not 0 <= options.regulariser < math.inf:
        raise AmataxError(f"a regulariser of {options.regulariser:g}", "its strength is positive, in nats per token")
    if options.regulariser and options.keep is not None:
        raise AmataxError("--regulariser and --keep", "C.5 holds ratios near to a mean that is given; leave one out")
    if options.preset is None:
        return
    if options.preset != "paper":
        raise AmataxError(f"--preset {options.preset}: there is no such preset", "there is `paper`")
    others = {
        "--keep": options.keep,
        "--groups": options.groups,
        "--free-head": options.free_head,
        "--weigh-by-layers": options.weigh_by_layers,
        "--regulariser": options.regulariser,
    }
    if named := [name for name, value in others.items() if value]:
        raise AmataxError(
            f"--preset paper and {named[0]}", "the preset is the paper's way, with blocks that count alike"
        )


def fit_targets(output: Path, cases: Sequence[Case]) -> list[Path]:
    """The recipe that each fit writes: `output`, or with several NAME-LABEL beside it.

    Raises:
        OutputError: if one cannot be written.
    """
    targets = (
        [output] if len(cases) == 1 else [output.with_name(f"{output.stem}-{c.label}{output.suffix}") for c in cases]
    )
    for target in targets:
        if target.is_dir():
            raise OutputError(f"{target} is a folder", "name the recipe to write: -o fitted.yaml")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"{output.resolve().parent}: no such folder", "make it first, or name another place with -o")
    return targets


def block_count(recipe: Recipe, options: FitOptions, plan: Plan) -> int | None:
    """How many blocks the layers are split into; None keeps the recipe's own explicit layer ranges.

    Raises:
        PlanError: for more blocks than layers.
    """
    asked = options.blocks
    if asked is None and recipe.fit is not None and "blocks" in recipe.fit.model_fields_set:
        asked = recipe.fit.blocks
    if asked is None:
        own = recipe.merge.ratios is not None and (
            len(plan.ratios.blocks) > 1 or not isinstance(plan.ratios.blocks[0], int | float)
        )
        return None if own else min(DEFAULT_BLOCKS, plan.model.layers)
    if not 1 <= asked <= plan.model.layers:
        message = f"{asked} blocks for a model of {plan.model.layers} layers"
        where = "--blocks" if options.blocks is not None else recipe.where("fit", "blocks")
        raise PlanError([Fault(message, where, "a block has at least one layer")])
    return asked


def _several(values: float | Sequence[float]) -> list[float]:
    return list(values) if isinstance(values, Sequence) else [values]
