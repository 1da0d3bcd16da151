"""Recipe + headers -> Plan, or every fault at once. No tensor is read and torch is not needed (but to open .bin files)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry, tie_flag
from amatax.checkpoints.dtypes import DISK_NAMES, INTEGER, MERGEABLE, torch_name
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import AdapterError, AmataxError, Fault, PlanError
from amatax.methods import method_copies, method_needs, options_model, simplest
from amatax.planning import siblings
from amatax.planning.destination import State, destination_faults, state
from amatax.planning.layout import OutputTensor, Shard, lay_out
from amatax.planning.names import Anatomy, Place, anatomy
from amatax.planning.ratios import PlannedBlock, plan_blocks, tensor_ratios
from amatax.planning.side_files import side_files
from amatax.planning.tying import resolve_tying
from amatax.recipes.schema import Merge, Ratios, Recipe, expand_home, is_folder

FORMAT = 1  # of the record; part of the identity


class PlannedTensor(NamedTuple):
    """One tensor of the output and what it is made of."""

    name: str
    dtype: str  # on disk, of the output
    shape: tuple[int, ...]
    place: Place
    ratio: float  # share of RLHF
    copy_of: str | None  # the model whose values are taken as they are; None: merged
    sources: dict[str, TensorEntry]  # what is read
    others: dict[str, TensorEntry]  # of a copy: the same tensor in the other models, to tell a mask by
    averaged_from: int | None = None  # the first element that base lacks: from it on SFT and RLHF are averaged

    @property
    def reads(self) -> int:
        """Bytes read; what two models share is read once."""
        shared = {(entry.path, entry.offset): entry.nbytes for entry in self.sources.values()}
        return sum(shared.values()) + sum(entry.reads - entry.nbytes for entry in self.sources.values())


@dataclass(frozen=True)
class Plan:
    """Everything about a merge that is known before it: found from headers, configs and the disk alone.

    Attributes:
        recipe: with Hub models pinned to commits and the ratios in their long form.
        ratios: those.
        checkpoints: the opened inputs by role.
        model: the SFT model's anatomy (layers, stacks, the place of every tensor).
        tied: the embedding counts as the head.
        blocks: the blocks with their layers and ratios.
        tensors: by name, in disk order.
        shards: the output's files with their headers and offsets.
        side_files: what is copied byte for byte, by its name in the output.
        config_changes: what is set in the copied config.json so that it is true to the weights.
        notes: what a careful user wants to know.
        identity: the same for the same merge: recipe, inputs' headers, layout; not the output's path.
        output: the folder to write; None if none was named (a plan can be looked at without one).
        found: what stands there now.
    """

    recipe: Recipe
    ratios: Ratios
    checkpoints: dict[str, Checkpoint]
    model: Anatomy
    tied: bool
    blocks: list[PlannedBlock]
    tensors: dict[str, PlannedTensor]
    shards: list[Shard]
    side_files: dict[str, Path]
    config_changes: dict[str, Any]
    notes: list[str]
    identity: str
    output: Path | None
    found: State

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every shard, by file name."""
        return {shard.file: shard.nbytes for shard in self.shards}

    @property
    def reads(self) -> int:
        """Bytes of tensors that will be read."""
        return sum(tensor.reads for tensor in self.tensors.values())

    @property
    def writes(self) -> int:
        """Bytes of tensors and headers that will be written."""
        return sum(shard.nbytes for shard in self.shards)


def make_plan(
    recipe: Recipe,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    remote: bool = False,
    carried: bool = False,
) -> Plan:
    """Plan a merge.

    Args:
        recipe: what is wanted.
        output: the folder to write; wins over the recipe's output.path.
        overwrite: another model may stand in the output folder.
        remote: of Hub models fetch headers and configs alone; otherwise download what a merge reads.
        carried: a finished shard is taken elsewhere before the next one is begun.

    Raises:
        PlanError: with every fault that headers, configs and the disk can show.
        CheckpointError, HubError: if an input cannot be opened at all and is the only fault.
    """
    if output is None and recipe.output.path is not None:
        output = Path(expand_home(recipe.output.path))
    ratios = recipe.merge.resolved_ratios()
    faults: list[Fault] = []
    if ratios is None:
        hint = "write `ratios: 0.5`, or a list of a ratio for each block"
        faults.append(Fault("merge.ratios is needed for a merge", recipe.where("merge"), hint))
    checkpoints = _open_all(recipe, faults, remote)
    if faults or ratios is None:
        raise PlanError(faults)

    copied, side_faults = side_files(recipe, checkpoints)
    faults += side_faults
    sft = checkpoints["sft"]
    needs = method_needs(simplest(recipe.merge.method, recipe.merge.options)[0])
    for role in needs:
        faults += siblings.quantised(checkpoints[role], role)
    model = anatomy(sft.tensors, sft.config)
    layer_faults = _layer_faults(model, sft)
    faults += layer_faults
    notes = [f"{role}: {note}" for role, checkpoint in checkpoints.items() for note in checkpoint.notes]
    if unread := [role for role in method_needs(recipe.merge.method) if role not in needs]:
        notes.append(f"with these options {recipe.merge.method} does not depend on {', '.join(unread)}: it is not read")
    tensors: dict[str, dict[str, TensorEntry]] = {"sft": sft.tensors}
    for role in needs:
        if role != "sft":
            tensors[role], matched = siblings.align(sft, checkpoints[role], role)
            notes += matched

    models = {
        role: model if entries.keys() == sft.tensors.keys() else anatomy(entries, checkpoints[role].config)
        for role, entries in tensors.items()
    }
    tying = resolve_tying(recipe.merge.untie, checkpoints, tensors, models)
    notes += tying.notes
    faults += tying.faults
    if tying.own_head:
        head, embeddings = tying.own_head
        for role, own in embeddings.items():
            tensors[role] = {**tensors[role], head: tensors[role][own]._replace(name=head)}
        models = {role: anatomy(entries, checkpoints[role].config) for role, entries in tensors.items()}
    model = models["sft"]
    if not tying.faults:
        for role in [role for role in tensors if role != "sft"]:
            faults += siblings.same_tensors(
                tensors["sft"],
                checkpoints[role],
                tensors[role],
                role,
                model,
                models[role],
                common_rows=recipe.merge.vocabulary == "common",
            )
    blocks, block_faults = plan_blocks(recipe, ratios, model.layers) if not layer_faults else ([], [])
    if faults := faults + block_faults:
        raise PlanError(faults)
    faults += _vocabulary_faults(recipe, checkpoints)
    if faults:
        raise PlanError(faults)
    by_name, ratio_faults = tensor_ratios(recipe, ratios, model, blocks, tying.tied is True)
    if ratio_faults:
        raise PlanError(ratio_faults)
    tied = tying.tied
    if len({by_name[name] for name in tying.pair}) > 1:
        tied = False
        notes.append(
            f"an override tells {' and '.join(map(repr, tying.pair))} apart: `tie_word_embeddings: false` is written"
        )

    planned = {name: _plan_tensor(recipe, name, model.places[name], by_name[name], tensors) for name in tensors["sft"]}
    shards = lay_out([OutputTensor(t.name, t.dtype, t.shape) for t in planned.values()], recipe.output.shard_bytes)
    changes = _config_changes(recipe, checkpoints[recipe.output.config], list(planned.values()), tied)
    notes += _notes(recipe, checkpoints, tensors, planned, changes)
    pinned = _pin(recipe, ratios, checkpoints)
    identity = _identity(pinned, checkpoints, shards)
    found = State.ABSENT
    if output is not None:
        folders = {checkpoint.folder for checkpoint in checkpoints.values()}
        folders |= {
            Path(ref).resolve() for ref in recipe.models.references().values() if is_folder(ref)
        }  # also adapters, and what is not read
        sizes = {shard.file: shard.nbytes for shard in shards}
        try:
            found = state(output, identity, sizes)
            if carried:
                sizes = dict([max(sizes.items(), key=lambda item: item[1])])  # on the disk at a time
            faults = list(destination_faults(output, sorted(folders), sizes, found, overwrite))
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL, a loop of links
            faults = [Fault(f"{output} cannot be written: {error}", hint="choose another output folder")]
        if faults:
            raise PlanError(faults)
    return Plan(
        recipe=pinned,
        ratios=ratios,
        checkpoints=checkpoints,
        model=model,
        tied=tying.tied is True,
        blocks=blocks,
        tensors=planned,
        shards=shards,
        side_files=copied,
        config_changes=changes,
        notes=notes,
        identity=identity,
        output=output,
        found=found,
    )


def _open_all(recipe: Recipe, faults: list[Fault], remote: bool) -> dict[str, Checkpoint]:
    """The models the method reads and those whose files are copied."""
    named = recipe.models.by_role()
    wanted: list[str] = [
        *method_needs(simplest(recipe.merge.method, recipe.merge.options)[0]),
        recipe.output.tokenizer,
        recipe.output.config,
    ]
    checkpoints: dict[str, Checkpoint] = {}
    for role in dict.fromkeys(wanted):
        if role not in named:
            faults.append(
                Fault(f"models.{role} is needed here", recipe.where("models"), f"add `{role}:` under `models`")
            )
            continue
        try:
            checkpoints[role] = open_checkpoint(named[role], remote=remote)
        except AdapterError as error:
            where = recipe.where("models", role, "adapter")
            faults += [Fault(fault.message, where, fault.hint) for fault in error.faults]
        except AmataxError as error:
            faults.append(Fault(error.message, recipe.where("models", role), error.hint))
    return checkpoints


def _layer_faults(model: Anatomy, sft: Checkpoint) -> list[Fault]:
    if model.layers and model.promised in (None, model.layers):
        found = {place.layer for place in model.places.values() if place.layer is not None}
        missing = next((layer for layer in range(model.layers) if layer not in found), None)
        if missing is None:
            return []
        message = f"config.json promises {model.layers} layers, the tensors have none of layer {missing}"
        if model.promised is None:
            message = f"the tensors have a layer {model.layers - 1} and none of layer {missing}"
    elif model.layers:
        message = f"config.json promises {model.promised} layers, the tensors have {model.layers}"
    else:
        seen = ", ".join(f"{stack.prefix} ({len(stack.indices)})" for stack in model.stacks) or "none"
        message = f"no transformer layers found (numbered stacks: {seen})"
    return [Fault(f"sft: {message}", sft.ref, "`amatax inspect FOLDER` shows what was found")]


def _vocabulary_faults(recipe: Recipe, checkpoints: dict[str, Checkpoint]) -> list[Fault]:
    """Base's config, where the rows that are written are those of another vocabulary."""
    base, sft = (checkpoints[role].config.get("vocab_size") for role in (recipe.output.config, "sft"))
    if recipe.output.config != "base" or base is None or sft is None or base == sft:
        return []
    message = f"base's config.json says vocab_size {base}, and the tensors that are written have sft's {sft}"
    return [Fault(message, recipe.where("output", "config"), "`config: sft`, and its tokenizer with it")]


def _plan_tensor(
    recipe: Recipe, name: str, place: Place, ratio: float, tensors: dict[str, dict[str, TensorEntry]]
) -> PlannedTensor:
    sft = tensors["sft"][name]
    sources: dict[str, TensorEntry] = {role: entries[name] for role, entries in tensors.items()}
    if sft.dtype in INTEGER or any(entry.dtype not in MERGEABLE for entry in sources.values()):
        # all are read, to note a difference
        return PlannedTensor(name, sft.dtype, sft.shape, place, 0.0, "sft", sources, {})
    dtype = DISK_NAMES[recipe.output.dtype] if recipe.output.dtype else sft.dtype
    copy_of: str | None = method_copies(simplest(recipe.merge.method, recipe.merge.options)[0]).get(ratio)
    others: dict[str, TensorEntry] = {}
    if copy_of is not None:
        others = {role: entry for role, entry in sources.items() if role != copy_of and entry.shape == sft.shape}
        return PlannedTensor(name, dtype, sft.shape, place, ratio, copy_of, {copy_of: sources[copy_of]}, others)
    averaged_from = None
    base = sources.get("base", sft)
    if base.shape != sft.shape:  # another vocabulary, whose common rows are merged
        rows, row = min(base.shape[0], sft.shape[0]), math.prod(sft.shape[1:])
        width = base.nbytes // max(1, math.prod(base.shape))
        sources["base"] = base._replace(shape=(rows, *sft.shape[1:]), nbytes=rows * row * width)
        averaged_from = rows * row if rows < sft.shape[0] else None
    return PlannedTensor(name, dtype, sft.shape, place, ratio, None, sources, {}, averaged_from)


def _config_changes(
    recipe: Recipe, source: Checkpoint, tensors: Sequence[PlannedTensor], tied: bool | None
) -> dict[str, Any]:
    """What config.json must say of the weights and does not."""
    changes: dict[str, Any] = {}
    amounts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in MERGEABLE:
            amounts[tensor.dtype] = amounts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    if amounts:
        dtype = torch_name(max(amounts, key=lambda d: amounts[d]))
        said = source.config.get("dtype", source.config.get("torch_dtype"))
        if said != dtype:
            changes["dtype"] = dtype
    if tied is not None and tie_flag(source.config) not in (tied, None if tied else False):
        changes["tie_word_embeddings"] = tied
    return changes


def _notes(
    recipe: Recipe,
    checkpoints: dict[str, Checkpoint],
    tensors: dict[str, dict[str, TensorEntry]],
    planned: dict[str, PlannedTensor],
    config_changes: dict[str, Any],
) -> list[str]:
    notes = [
        f"config: {key}: {json.dumps(value)} is written, as the weights are" for key, value in config_changes.items()
    ]
    sft = checkpoints["sft"]
    for role, entries in tensors.items():
        if role == "sft":
            continue
        notes += siblings.dtype_notes(sft, entries, role)
        notes += [
            f"config: {d} (sft -> {role}; {recipe.output.config}'s is written)"
            for d in siblings.config_differences(sft, checkpoints[role], config_changes)
        ]
        if files := siblings.tokenizer_differences(sft, checkpoints[role]):
            notes.append(
                f"tokenizer: {', '.join(files)} differ between sft and {role}; {recipe.output.tokenizer}'s are copied"
            )
    code = [name for name in checkpoints[recipe.output.config].names if name.endswith(".py") and "/" not in name]
    if code:
        notes.append(f"custom code is copied and never run: {', '.join(code)}")
    copied = [t.name for t in planned.values() if t.dtype in INTEGER]
    if copied:
        notes.append(f"{len(copied)} integer tensors are copied from sft")
    for tensor in planned.values():
        if tensor.averaged_from is not None:
            rows = tensor.shape[0] - tensor.sources["base"].shape[0]
            notes.append(f"the last {rows} rows of {tensor.name!r}, which base lacks, are the average of sft and rlhf")
        elif "base" in tensor.sources and tensors["base"][tensor.name].shape != tensor.shape:
            rows = tensors["base"][tensor.name].shape[0] - tensor.shape[0]
            notes.append(f"the last {rows} rows of base's {tensor.name!r}, which sft and rlhf lack, are left out")
    other = [t for t in planned.values() if t.place.kind == "other"]
    if other:
        ratios = sorted({t.ratio for t in other})
        shown = ", ".join(f"{r:g}" for r in ratios[:3])
        notes.append(
            f"{len(other)} tensors are outside the backbone (`other`), at ratio {shown}; first {other[0].name!r}"
        )
    return notes


def _pin(recipe: Recipe, ratios: Ratios, checkpoints: dict[str, Checkpoint]) -> Recipe:
    """The recipe with Hub models at their commits and the method's defaults written out, so that it means the same tomorrow."""
    commits: dict[str, str] = {}
    for role, checkpoint in checkpoints.items():
        commits[role] = checkpoint.pinned
        if checkpoint.adapter is not None:
            commits[f"{role} adapter"] = checkpoint.adapter.pinned
    options = options_model(recipe.merge.method).model_validate(recipe.merge.options).model_dump()
    merge = Merge.model_validate({**recipe.merge.model_dump(), **options, "ratios": ratios})
    models = recipe.models.renamed(lambda key, ref: commits.get(key, ref))
    result = recipe.model_copy(update={"models": models, "merge": merge})
    result._origin = recipe._origin
    return result


def _adapter(checkpoint: Checkpoint) -> dict[str, str]:
    """What the identity says of an adapter; nothing where there is none."""
    return {"adapter": checkpoint.adapter.pinned} if checkpoint.adapter is not None else {}


def _identity(recipe: Recipe, checkpoints: dict[str, Checkpoint], shards: list[Shard]) -> str:
    """sha256 over what the output's tensors depend on, without times and without the output's path."""
    content = {
        "format": FORMAT,
        "models": {
            role: {"ref": c.pinned, "files": [(i.name, i.file.size, i.file.header) for i in c.inputs], **_adapter(c)}
            for role, c in sorted(checkpoints.items())
        },
        "merge": recipe.merge.model_dump(mode="json"),
        "output": recipe.output.model_dump(mode="json", exclude={"path"}),
        "shards": [hashlib.sha256(shard.header).hexdigest() for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
