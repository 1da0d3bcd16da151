"""amatax schema"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any


def run() -> None:
    """Print the recipe language as JSON Schema, for editors that complete and check YAML."""
    from amatax.methods import method_names
    from amatax.recipes.schema import Recipe

    schema = Recipe.model_json_schema()
    merge = schema["$defs"]["Merge"]
    merge["properties"]["method"]["enum"] = method_names()
    merge["properties"] |= _options()
    merge["additionalProperties"] = False
    print(json.dumps(schema, indent=2))


def _options() -> dict[str, Any]:
    """The options of all methods: what one looks like, and the defaults by method."""
    from amatax.methods import method_names, options_model

    found: dict[str, Any] = {}
    for method in method_names():
        with suppress(ImportError):  # a package whose method cannot be used: a merge by it says so
            for name, option in options_model(method).model_json_schema().get("properties", {}).items():
                default = json.dumps(option.pop("default", None))
                said = found.setdefault(name, {**option, "description": "an option of"})
                said["description"] += f" {method} (default {default}),"
    return {name: {**option, "description": option["description"].rstrip(",")} for name, option in found.items()}
