"""Recipe + headers -> Plan, or every fault at once. No tensor is read and torch is not needed (but to open .bin files)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint, TensorEntry
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import AdapterError, AmataxError, Fault, PlanError
from amatax.methods import method_needs, simplest
from amatax.planning import siblings
from amatax.planning.config_json import config_changes, config_faults
from amatax.planning.destination import State, destination_faults, state
from amatax.planning.identity import merge_identity, pin
from amatax.planning.layout import OutputTensor, Shard, lay_out
from amatax.planning.names import Anatomy, anatomy
from amatax.planning.notes import planned_notes
from amatax.planning.ratios import PlannedBlock, plan_blocks, tensor_ratios
from amatax.planning.side_files import side_files
from amatax.planning.tensors import PlannedTensor, plan_tensor
from amatax.planning.tying import resolve_tying
from amatax.recipes.schema import Ratios, Recipe, expand_home, is_folder


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
    faults += config_faults(recipe, checkpoints)
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

    planned = {name: plan_tensor(recipe, name, model.places[name], by_name[name], tensors) for name in tensors["sft"]}
    shards = lay_out([OutputTensor(t.name, t.dtype, t.shape) for t in planned.values()], recipe.output.shard_bytes)
    changes = config_changes(recipe, checkpoints[recipe.output.config], list(planned.values()), tied)
    notes += planned_notes(recipe, checkpoints, tensors, planned, changes)
    pinned = pin(recipe, ratios, checkpoints)
    identity = merge_identity(pinned, checkpoints, shards)
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
