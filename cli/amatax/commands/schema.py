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
    measure = schema["$defs"]["Measure"]
    kinds, options = _measures()
    measure["properties"]["measure"]["enum"] = kinds
    measure["properties"] |= options
    measure["additionalProperties"] = False
    print(json.dumps(schema, indent=2))


def _options() -> dict[str, Any]:
    """The options of all methods: what one looks like, and the defaults by method."""
    from amatax.methods import method_names, options_model

    options: dict[str, dict[str, Any]] = {}
    for method in method_names():
        with suppress(ImportError):  # a package whose method cannot be used: a merge by it says so
            options[method] = options_model(method).model_json_schema().get("properties", {})
    return _together(options)


def _measures() -> tuple[list[str], dict[str, Any]]:
    """The kinds of measures, and their options in the same way."""
    from amatax.evaluation.declared import kinds_and_options

    found = kinds_and_options()
    return list(found), _together({kind: options for kind, (_, options) in found.items()})


def _together(by_owner: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What an option of that name may be, of whichever method or measure; and whose it is, with which default."""
    found: dict[str, Any] = {}
    for owner, options in by_owner.items():
        for name, option in options.items():
            default = json.dumps(option.pop("default", None))
            said = found.setdefault(name, {**option, "description": "an option of"})
            said["description"] += f" {owner} (default {default}),"
    return {name: {**option, "description": option["description"].rstrip(",")} for name, option in found.items()}
