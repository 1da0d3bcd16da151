"""The public verbs. The only module that sees every stage; the command line and scripts both come through here."""

from __future__ import annotations

from amatax.api.common import Watcher
from amatax.api.evaluating import preview_sweep, sweep
from amatax.api.fitting import distill, fit_ratios
from amatax.api.importing import import_mergekit
from amatax.api.looking import Inspection, difference, inspect
from amatax.api.merging import MergeResult, merge, verify
from amatax.api.planning import plan
from amatax.api.pushing import check_push, push
from amatax.recipes.loading import load_recipe

__all__ = [
    "Inspection",
    "MergeResult",
    "Watcher",
    "check_push",
    "difference",
    "distill",
    "fit_ratios",
    "import_mergekit",
    "inspect",
    "load_recipe",
    "merge",
    "plan",
    "preview_sweep",
    "push",
    "sweep",
    "verify",
]
