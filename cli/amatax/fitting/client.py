"""One request to an OpenAI-compatible server: tried again where that may help, refused in one line where not.

By urllib: which HTTP library huggingface_hub brings depends on its version, and nothing here needs more than the standard one.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amatax.errors import AmataxError

KEYS = ("AMATAX_API_KEY", "OPENAI_API_KEY")  # the first that is set
ENDPOINT = re.compile(r"(/v1)?(/chat/completions|/completions|/models)?/*$")
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the backoff; a Retry-After may ask for ten times that
AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True)
class Server:
    """Where requests go, and how patient we are.

    Attributes:
        url: without /v1.
        retries: after a first failure.
        timeout: seconds without an answer.
        concurrency: requests at a time.
    """

    url: str
    retries: int = 5
    timeout: float = 600.0
    concurrency: int = 16


class RefusedError(Exception):
    """An answer that trying again does not change."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST loses its body, and would take the API key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def server_url(text: str) -> str:
    """The server's address without /v1.

    Raises:
        AmataxError: if it is no plain http or https URL.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise AmataxError(f"--server {text}: not a URL", "like http://localhost:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise AmataxError(
            f"--server {parts.scheme}://{parts.hostname}...: more than an address", f"put the API key in {KEYS[1]}"
        )
    return ENDPOINT.sub("", text.rstrip("/"))


def ask(
    server: Server,
    path: str,
    body: dict[str, Any] | None,
    stop: threading.Event,
    read: Callable[[Any], Any] = lambda answer: answer,
) -> Any:
    """One request, tried again with growing pauses as long as that may help.

    Raises:
        RefusedError: by the server, for good.
        AmataxError: when the retries are used up, with the last cause.
    """
    cause = ""
    for attempt in range(server.retries + 1):
        pause = min(0.5 * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.5)
        try:
            return read(json.loads(_fetch(server, path, body)))
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code < 500 and error.code not in AGAIN:
                raise RefusedError(error.code, said) from None
            cause = said
            pause = max(pause, _retry_after(error)) if error.code in (429, 503) else pause
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            timed_out = isinstance(reason, TimeoutError)
            cause = f"no answer in {server.timeout:g} s" if timed_out else _clean(str(reason) or type(reason).__name__)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            cause = "its answer is not what an OpenAI-compatible server gives"
        if attempt < server.retries and stop.wait(pause):
            break
    tries = f"{server.retries + 1} attempts" if server.retries else "one attempt"
    raise AmataxError(
        f"{server.url}{path}: {cause} ({tries})",
        "is the server up? The same command continues with what is done; --timeout, --retries and --concurrency are yours",
    )


def _fetch(server: Server, path: str, body: dict[str, Any] | None) -> bytes:
    request = urllib.request.Request(server.url + path, method="GET" if body is None else "POST")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if key := _key():
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if urlsplit(server.url).hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(urllib.request.ProxyHandler({}))  # no proxy reaches this machine from outside
    with urllib.request.build_opener(*handlers).open(request, timeout=server.timeout) as response:
        data, until = b"", time.monotonic() + server.timeout
        while piece := response.read1(1 << 16):  # the opener's timeout is for each of these
            data += piece
            if time.monotonic() > until:
                raise TimeoutError
        length = response.headers.get("Content-Length")
        if length is not None and len(data) < int(length):
            raise http.client.IncompleteRead(data, int(length) - len(data))
    return data


def _key() -> str:
    return next((key for name in KEYS if (key := os.environ.get(name, "").strip())), "")


def _said(error: urllib.error.HTTPError) -> str:
    """A refusal in one line: the status, and the server's words without our key."""
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        data = json.loads(text)
        inner = data.get("error", data)
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError, RecursionError):
        text = "" if "<html" in text.lower() else text
    if 300 <= error.code < 400:
        text = f"it redirects to {error.headers.get('Location', '?')}: name that address"
    return f"{error.code} {error.reason}" + (f": {_clean(text)}" if text.strip() else "")


def _clean(text: str) -> str:
    key = _key()
    return " ".join((text.replace(key, "***") if key else text).split())[:300]


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks for; 0 if it does not say (or gives a date)."""
    try:
        return max(0.0, min(float(error.headers.get("Retry-After", 0)), 10 * LONGEST_WAIT))
    except ValueError:
        return 0.0


@contextmanager
def refusals(server: Server) -> Iterator[None]:
    """A refusal as an AmataxError with the next step."""
    try:
        yield
    except RefusedError as refused:
        hints = {
            401: f"set {KEYS[1]} to the server's key",
            403: f"set {KEYS[1]} to a key that may do this",
            404: "does the server have this model and this endpoint? See --server and --server-model",
        }
        hint = hints.get(refused.status, "change what the server refuses; the same command continues with what is done")
        raise AmataxError(f"{server.url}: {refused.said}", hint) from None
