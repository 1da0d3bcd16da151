"""huggingface_hub's client as amatax uses it: named, quiet, patient, and never waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from amatax import __version__
from amatax.checkpoints.hub_errors import unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
PASSING = (429, 500, 502, 503, 504)  # answers after which it is worth asking again
WAITS = (0.5, 1.0, 2.0)  # seconds between the attempts at a question


def hub_api(token: str | None = None) -> HfApi:
    """The client; what it would print of its retries is said in errors, where it matters."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    return HfApi(library_name="amatax", library_version=__version__, token=token)


def patiently(ask: Callable[[], T]) -> T:
    """Ask a question that changes nothing, again after an answer that passes (429, 5xx) or none."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for wait in WAITS:
        try:
            return ask()
        except OfflineModeIsEnabled:
            raise
        except HfHubHTTPError as error:
            if error.response.status_code not in PASSING:
                raise
        except Exception as error:
            if not unreachable(error) or "ConnectError" in type(error).__name__:
                raise
        time.sleep(wait)
    return ask()


def files_of(repo: str, revision: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """(commit, name -> (what identifies the content: sha256 or git's blob id, bytes)) of a repository's files."""
    api = hub_api()
    info = patiently(lambda: api.model_info(repo, revision=revision or None, files_metadata=True))
    files = {s.rfilename: (str(s.lfs.sha256 if s.lfs else s.blob_id or ""), s.size or 0) for s in info.siblings or []}
    return str(info.sha), files


def range_options() -> dict[str, Any]:
    """Of http_stream_backoff: retried, redirected, and given up when nothing comes for a while."""
    from huggingface_hub import constants

    return {
        "follow_redirects": True,
        "retry_on_status_codes": PASSING,
        "timeout": max(1, constants.HF_HUB_DOWNLOAD_TIMEOUT),
    }
