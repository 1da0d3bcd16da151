"""torch and transformers, imported where they are needed and not before."""

from __future__ import annotations

import os
from importlib import import_module

from amatax.errors import MissingExtraError
from amatax.streaming.importing import importing_torch


def import_libraries() -> None:
    """Import torch and transformers, quietly.

    Raises:
        MissingExtraError: without transformers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns of every fork
    # on a machine with other work, OpenMP's threads that spin for the next matrix slow a small model down tenfold
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with importing_torch():
            import_module("torch")
            import transformers
    except ImportError as error:
        raise MissingExtraError(f"this needs transformers ({error})", 'pip install "amatax[fit]"') from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
