"""torch and transformers, imported where they are needed and not before."""

from __future__ import annotations

import os
import signal
import warnings
from importlib import import_module

from amatax.errors import MissingExtraError


def import_libraries() -> None:
    """Import torch and transformers, quietly.

    Raises:
        MissingExtraError: without transformers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns of every fork
    # on a machine with other work, OpenMP's threads that spin for the next matrix slow a small model down tenfold
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ctrl-C waits for the seconds this takes: an exception in the middle of torch's C++ part ends the process with SIGABRT
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # which is not needed
            import_module("torch")
            import transformers
    except ImportError as error:
        raise MissingExtraError(f"this needs transformers ({error})", 'pip install "amatax[fit]"') from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
