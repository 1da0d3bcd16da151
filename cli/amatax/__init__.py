"""amatax: merge the checkpoints from before and after RLHF, block by block, to pay less alignment tax.

The public names are loaded when first used, so that importing amatax imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from amatax.api import evaluate, fit_ratios, merge, plan
    from amatax.errors import AmataxError
    from amatax.planning.plan import Plan
    from amatax.recipes.loading import load_recipe
    from amatax.recipes.schema import Recipe

_HOMES = {
    "load_recipe": "amatax.recipes.loading",
    "plan": "amatax.api",
    "merge": "amatax.api",
    "fit_ratios": "amatax.api",
    "evaluate": "amatax.api",
    "Recipe": "amatax.recipes.schema",
    "Plan": "amatax.planning.plan",
    "AmataxError": "amatax.errors",
}

__all__ = ["AmataxError", "Plan", "Recipe", "__version__", "evaluate", "fit_ratios", "load_recipe", "merge", "plan"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'amatax' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
