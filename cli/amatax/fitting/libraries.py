"""torch and transformers, imported where they are needed and not before."""

from __future__ import annotations

import os
from importlib import import_module

from amatax.errors import MissingExtraError
from amatax.streaming.importing import importing_torch


def set_threads() -> None:
    """How the threads of tokenizers and OpenMP behave, unless the user has said it: both look when they are imported, or with torch."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns of every fork
    # how long OpenMP's threads spin for the next matrix, in turns: they sleep between a small model's operations otherwise,
    # and waking them takes up to twice as long as the work; with more turns they keep other processes from their cores
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def import_libraries() -> None:
    """Import torch and transformers, quietly.

    Raises:
        MissingExtraError: without transformers.
    """
    set_threads()
    try:
        with importing_torch():
            import_module("torch")
            import transformers
    except ImportError as error:
        raise MissingExtraError(f"this needs transformers ({error})", 'pip install "amatax[fit]"') from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
