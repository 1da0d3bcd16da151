"""plan: what a merge will do, from headers alone; and what it fetches before it begins."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from amatax.api.common import RecipeSource, Watcher, as_recipe
from amatax.checkpoints.downloads import Download, check_room, remember_name
from amatax.checkpoints.remote import wanted
from amatax.planning.destination import State
from amatax.planning.plan import Plan, make_plan


def plan(
    recipe: RecipeSource,
    output: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    stream: bool = False,
    push_to: str | None = None,
) -> Plan:
    """Find out from headers alone what a merge will do, or everything that is wrong with it; of Hub models no weight is fetched.

    Args:
        recipe: a Recipe, a YAML file, or a mapping.
        output: the folder to write; wins over the recipe's output.path.
        overwrite: another model may stand in the output folder.
        stream: the weights of Hub models will be read over the network: the cache needs no room for them.
        push_to: with `stream`, where the shards will go one by one: the disk needs no room for all of them.

    Raises:
        RecipeError, PlanError: with all faults.
        HubError: if a model cannot be read, or the cache's disk is too small for what is still to come.
    """
    planned = planned_from_headers(recipe, output, overwrite=overwrite, stream=stream, push_to=push_to)
    if not stream and (planned.found is not State.SAME or overwrite):
        downloads(planned)
    return planned


def planned_from_headers(
    recipe: RecipeSource, output: str | PathLike[str] | None, *, overwrite: bool, stream: bool, push_to: str | None
) -> Plan:
    """The plan, with a place to work for a merge whose shards go to the Hub one by one."""
    known, carried = as_recipe(recipe), stream and bool(push_to)
    if carried and output is None and known.output.path is None:
        output = str(push_to).rpartition("/")[2]
    folder = Path(output) if output is not None else None
    return make_plan(known, folder, overwrite=overwrite, remote=True, carried=carried)


def downloaded(planned: Plan, watcher: Watcher, *, overwrite: bool = False) -> Plan:
    """The same plan with every file here: what was planned from the Hub's headers is fetched now, at the planned commits.

    Raises:
        HubError: if the Hub stops answering; what has arrived is kept.
    """
    far = {role: checkpoint for role, checkpoint in planned.checkpoints.items() if checkpoint.remote is not None}
    if not far:
        return planned
    size = sum(checkpoint.nbytes for checkpoint in far.values())
    watcher.say(
        f"fetching {' and '.join(c.pinned for c in far.values())}, {size / 1e9:.2f} GB where not in the cache yet"
    )
    coming = downloads(planned)
    near = make_plan(planned.recipe, planned.output, overwrite=overwrite)
    for download in coming:  # planned at its commit; offline the name is asked for
        remember_name(download)
    return near


def downloads(planned: Plan) -> list[Download]:
    """What a merge fetches of the models that are on the Hub.

    Raises:
        HubError: if the cache's disk is too small for it, and for the output where that stands on the same disk.
    """
    coming = [wanted(checkpoint) for checkpoint in planned.checkpoints.values() if checkpoint.remote is not None]
    if coming:
        place = (planned.output or Path()).resolve()
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        check_room(coming, {} if planned.found is State.SAME else {there: planned.writes})
    return coming
