"""The recipe language as pydantic models. A Recipe is data: it holds no checkpoint and reads no file.

Every ratio is the share of the RLHF model: 0 is SFT (theta_0), 1 is RLHF (theta); arXiv 2309.06256.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag

Role = Literal["base", "sft", "rlhf"]
Dtype = Literal["float64", "float32", "float16", "bfloat16"]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LayerRange = (
    Annotated[str, Field(pattern=r"^\s*\d{1,6}\s*(-\s*\d{1,6}\s*)?$")] | Annotated[int, Field(ge=0, strict=True)]
)

SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adapted(_Model):
    """A model with a PEFT adapter on it."""

    model: str = Field(min_length=1, description="the model that the adapter was trained on, a folder or a Hub id")
    adapter: str = Field(min_length=1, description="the adapter: LoRA and what is like it, a folder or a Hub id")

    def __str__(self) -> str:
        return f"{self.model} with {self.adapter}"


def _model_form(value: Any) -> str:
    return "adapted" if isinstance(value, dict | Adapted) else "model"


Model = Annotated[
    Annotated[str, Field(min_length=1), Tag("model")] | Annotated[Adapted, Tag("adapted")],
    Discriminator(_model_form),
]


class Models(_Model):
    """Which checkpoints: folders (./, ../, / or ~ in front) or Hub ids, with @revision if wanted; or {model, adapter}."""

    base: Model | None = Field(None, description="the pre-trained model; only delta methods need it")
    sft: Model = Field(description="the model before RLHF (theta_0)")
    rlhf: Model = Field(description="the model after RLHF (theta)")

    def by_role(self) -> dict[str, str | Adapted]:
        """The models that are named, in the order base, sft, rlhf."""
        named = {"base": self.base, "sft": self.sft, "rlhf": self.rlhf}
        return {role: model for role, model in named.items() if model is not None}

    def references(self) -> dict[str, str]:
        """Every folder and Hub id that is named: of a role its model, then its adapter as `ROLE adapter`."""
        found: dict[str, str] = {}
        for role, model in self.by_role().items():
            adapted = model if isinstance(model, Adapted) else None
            found[role] = adapted.model if adapted else str(model)
            if adapted:
                found[f"{role} adapter"] = adapted.adapter
        return found

    def renamed(self, rename: Callable[[str, str], str]) -> Models:
        """The same with every folder and Hub id replaced: by (its key in `references`, it)."""
        ours = {
            role: Adapted(model=rename(role, model.model), adapter=rename(f"{role} adapter", model.adapter))
            if isinstance(model, Adapted)
            else rename(role, model)
            for role, model in self.by_role().items()
        }
        return Models.model_validate(ours)


class Block(_Model):
    """A block given by its layers (zero-based, inclusive), with one ratio, or one for attention and one for the MLP."""

    layers: LayerRange = Field(description="the layers, zero-based and inclusive: 0-7")
    ratio: Number | None = Field(None, description="share of RLHF of the whole block")
    attention: Number | None = Field(None, description="share of RLHF of the attention")
    mlp: Number | None = Field(None, description="share of RLHF of the MLP")

    def ratios(self) -> tuple[float, ...]:
        """(ratio,), or (attention, mlp)."""
        both = (self.ratio,) if self.ratio is not None else (self.attention, self.mlp)
        return tuple(r for r in both if r is not None)


class Override(_Model):
    """A ratio for the tensors whose disk name matches `match` and whose layer is in `layers`; the first match wins."""

    match: str | None = Field(None, min_length=1, description="glob over the tensor's name on disk: *.mlp.*")
    layers: LayerRange | None = Field(None, description="the layers, zero-based and inclusive: 0-7")
    ratio: Number = Field(description="share of RLHF")


def _block_form(value: Any) -> str:
    return "block" if isinstance(value, dict | Block) else "ratio"


BlockRatio = Annotated[
    Annotated[Number, Tag("ratio")] | Annotated[Block, Tag("block")],
    Discriminator(_block_form),
]
KindRatio = Literal["mean"] | Number
NormRatio = Literal["mean", "block"] | Number


class Ratios(_Model):
    """The share of RLHF of every tensor: by block inside the layers, by kind outside."""

    blocks: list[BlockRatio] = Field(
        min_length=1, description="a ratio per block, input side first; the layers are split evenly"
    )
    head: KindRatio = Field("mean", description="output head; `mean` is the unweighted mean over the blocks' ratios")
    embeddings: KindRatio = Field("mean", description="token and position embeddings; a tied one counts as the head")
    norms: NormRatio = Field("block", description="norms; `block`: in a layer its block's ratio, outside `mean`")
    other: KindRatio = Field("mean", description="what no rule places: vision towers, projectors, extra heads")
    overrides: list[Override] = Field(default_factory=list, description="first match wins, over everything above")


def _ratios_form(value: Any) -> str:
    if isinstance(value, dict | Ratios):
        return "mapping"
    return "list" if isinstance(value, list) else "ratio"


AnyRatios = Annotated[
    Annotated[Number, Tag("ratio")]
    | Annotated[list[BlockRatio], Field(min_length=1), Tag("list")]
    | Annotated[Ratios, Tag("mapping")],
    Discriminator(_ratios_form),
]


class Merge(_Model):
    """How the checkpoints are merged. Options of the method stand beside `method` under their own names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = Field("average", description="the merge method")
    ratios: AnyRatios | None = Field(None, description="share of RLHF: one number, a list by block, or a mapping")
    extrapolate: bool = Field(False, strict=True, description="allow ratios outside 0..1 (ExPO)")
    untie: bool = Field(
        False,
        strict=True,
        description="if only one model ties its embeddings: give the other's head a matrix of its own",
    )
    vocabulary: Literal["common"] | None = Field(
        None,
        description="`common`: of the vocabulary merge the rows that base has, too, and average sft and rlhf in the others",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, as written."""
        return dict(self.model_extra or {})

    def resolved_ratios(self) -> Ratios | None:
        """`ratios` in its long form: 0.4 is {blocks: [0.4]}, a list is {blocks: list}."""
        if self.ratios is None or isinstance(self.ratios, Ratios):
            return self.ratios
        return Ratios(blocks=self.ratios if isinstance(self.ratios, list) else [self.ratios])


class Output(_Model):
    """What is written."""

    path: str | None = Field(
        None, min_length=1, description="the model folder to write, relative to the working directory"
    )
    dtype: Dtype | None = Field(None, description="of all floating-point tensors; default: each keeps the SFT tensor's")
    max_shard_size: (
        Annotated[str, Field(pattern=r"^\s*\d{1,15}(\.\d{1,15})?\s*([KMGTkmgt][iI]?)?[bB]?\s*$")]
        | Annotated[int, Field(gt=0, strict=True)]
    ) = Field("5GB", description="decimal units (5GB is 5*10^9 bytes); KiB, MiB, GiB are binary")
    tokenizer: Role = Field("sft", description="whose tokenizer and chat template are copied, byte for byte")
    config: Role = Field("sft", description="whose config.json, generation_config.json and custom code are copied")

    @property
    def shard_bytes(self) -> int:
        """max_shard_size in bytes."""
        return parse_size(self.max_shard_size)


class Fit(_Model):
    """What fit-ratios is asked for."""

    alpha: Number | None = Field(None, ge=0, le=1, description="the mean ratio, held fixed")
    blocks: Annotated[int, Field(ge=1, strict=True)] = Field(3, description="into how many blocks the layers are split")
    data: str | None = Field(None, description="JSONL of prompts and responses of the RLHF model")
    prompts: str | None = Field(None, description="JSONL of prompts, distilled first")
    holdout: Number | str = Field(0.2, description="the share that is never fitted, or a JSONL file")


MeasureName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class Measure(_Model):
    """What `evaluate` and `sweep` measure. Options of the kind stand beside `measure` under their own names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    measure: str = Field(min_length=1, description="the kind: nll, exact_match, reward, ...")
    data: str | None = Field(None, min_length=1, description="JSONL, relative to the recipe's file")
    higher: bool | None = Field(
        None, strict=True, description="whether more is better, of a kind that leaves it open: length"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own options, as written."""
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class Origin:
    """Where a recipe was read from: the file, and the line of every key. Two recipes are equal wherever they stand."""

    file: str = ""
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def where(self, path: tuple[str | int, ...]) -> str:
        """file:line (key.path) of a key, or of its nearest written parent."""
        parent = path
        while parent and parent not in self.lines:
            parent = parent[:-1]
        place = f"{self.file}:{self.lines[parent]}" if parent in self.lines else self.file
        return f"{place} ({dotted(path)})" if path else place


class Recipe(_Model):
    """One merge: which models, how, and what is written."""

    models: Models
    merge: Merge = Merge()
    output: Output = Output()
    fit: Fit | None = None
    measures: dict[MeasureName, Measure] = Field(
        default_factory=dict, description="what `evaluate` and `sweep` measure, by the name of its column"
    )
    record: dict[str, Any] = Field(default_factory=dict, description="written by amatax; never read as a wish")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def where(self, *path: str | int) -> str:
        """file:line (key.path) of a key, for messages."""
        return self._origin.where(path)


def dotted(path: tuple[str | int, ...]) -> str:
    """('merge', 'blocks', 0) -> 'merge.blocks[0]'."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def parse_size(size: str | int) -> int:
    """'5GB' -> 5000000000. Decimal units unless they carry an i."""
    if isinstance(size, int):
        return size
    text = size.upper().strip()
    number = text.rstrip("KMGTIB ")
    unit = text[len(number) :].strip()
    return int(float(number) * SIZE_UNITS[unit if unit.endswith("B") or not unit else unit + "B"])


def parse_layers(layers: str | int) -> range:
    """'0-7' -> range(0, 8); '3' or 3 -> range(3, 4)."""
    first, _, last = str(layers).partition("-")
    return range(int(first), int(last or first) + 1)


def expand_home(path: str) -> str:
    """`~/x` -> `/home/me/x`; an unknown `~user` stays, and is then no such folder (Path.expanduser raises)."""
    return os.path.expanduser(path)  # noqa: PTH111


def is_folder(model: str) -> bool:
    """Whether a model of a recipe names a folder (anything else is a Hub id)."""
    return model.startswith(("./", "../", "/", "~")) or model in (".", "..")
