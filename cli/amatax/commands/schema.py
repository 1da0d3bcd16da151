"""amatax schema"""

from __future__ import annotations

import json


def run() -> None:
    """Print the recipe language as JSON Schema, for editors that complete and check YAML."""
    from amatax.recipes.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
