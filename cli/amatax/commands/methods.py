"""amatax methods"""

from __future__ import annotations

import json
import sys

import typer


def run(as_json: bool = typer.Option(False, "--json", help="Print them as JSON.")) -> None:
    """List the merge methods, what they do, their options and which checkpoints they need."""
    from amatax.methods import defaults, method_names, method_needs, summary

    known, broken = {}, {}
    for name in method_names():
        try:
            known[name] = {"does": summary(name), "needs": method_needs(name), "options": defaults(name)}
        except ImportError as error:  # another package's
            broken[name] = str(error)
    if as_json:
        print(json.dumps(known, indent=2))
    else:
        for name in known:
            options = ", ".join(f"{option}: {json.dumps(value)}" for option, value in defaults(name).items())
            print(f"{name}\n  {summary(name)}\n  needs {', '.join(method_needs(name))}; options {options or 'none'}\n")
        print("Every one takes `ratios` (share of RLHF, by block); beyond 0..1 with `extrapolate: true`.")
    for message in broken.values():
        print(message, file=sys.stderr)
