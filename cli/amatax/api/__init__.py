"""The public verbs. The only module that sees every stage; the command line and scripts both come through here."""

from __future__ import annotations

from amatax.api.common import Watcher
from amatax.api.evaluating import evaluate
from amatax.api.fitting import distill, fit_ratios
from amatax.api.importing import import_mergekit
from amatax.api.looking import AdapterInspection, Inspection, difference, inspect, inspect_adapter, inspect_recipe
from amatax.api.merging import MergeResult, merge, verify
from amatax.api.planning import plan
from amatax.api.pushing import check_push, push
from amatax.api.sweeping import preview_sweep, sweep
from amatax.recipes.loading import load_recipe

__all__ = [
    "AdapterInspection",
    "Inspection",
    "MergeResult",
    "Watcher",
    "check_push",
    "difference",
    "distill",
    "evaluate",
    "fit_ratios",
    "import_mergekit",
    "inspect",
    "inspect_adapter",
    "inspect_recipe",
    "load_recipe",
    "merge",
    "plan",
    "preview_sweep",
    "push",
    "sweep",
    "verify",
]
