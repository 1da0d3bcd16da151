"""amatax methods"""

from __future__ import annotations


def run() -> None:
    """List the merge methods, what they do and which checkpoints they need."""
    from amatax.methods import kernel, method_names, method_needs, method_options

    for name in method_names():
        first = (kernel(name).__doc__ or "").partition("\n")[0]
        options = ", ".join(f"{key}={p.default!r}" for key, p in method_options(name).items()) or "no options"
        print(f"{name:<18} {first}  needs {', '.join(method_needs(name))}; {options}")
