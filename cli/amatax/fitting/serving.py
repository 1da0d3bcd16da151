"""Sampling from an OpenAI-compatible server that the user runs: many requests at a time, retries, results as they come.

By urllib: which HTTP library huggingface_hub brings depends on its version, and nothing here needs more than the standard one.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amatax.errors import AmataxError
from amatax.fitting.records import Record, prompt_text
from amatax.fitting.sampling import Sample, Sampling, seed_of

KEYS = ("AMATAX_API_KEY", "OPENAI_API_KEY")  # the first that is set
ENDPOINT = re.compile(r"(/v1)?(/chat/completions|/completions|/models)?/*$")
# servers have sampling habits of their own (vLLM takes the model's top_k and repetition_penalty, llama.cpp has min_p and top_k)
PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
LONGEST_WAIT = (
    60.0  # seconds between two attempts, whatever the backoff; a server's Retry-After may ask for ten times that
)
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


class _Refused(Exception):
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


def served_model(server: Server) -> str:
    """The name of the only model that the server has.

    Raises:
        AmataxError: if it has none or several, or does not answer.
    """
    try:
        answer = _ask(server, "/v1/models", None, threading.Event())
        names = [str(model["id"]) for model in answer["data"]]
    except (_Refused, KeyError, TypeError) as error:
        said = f" ({error.said})" if isinstance(error, _Refused) else ""
        raise AmataxError(
            f"{server.url} does not say which models it has{said}", "name the model: --server-model NAME"
        ) from None
    if len(names) != 1:
        listed = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        raise AmataxError(
            f"{server.url} has {f'{len(names)} models: {listed}' if names else 'no model'}",
            "name one: --server-model NAME" if names else "load the recipe's RLHF model into it",
        )
    return names[0]


def serve_samples(
    server: Server,
    model: str,
    records: Sequence[Record],
    items: Sequence[int],
    sampling: Sampling,
    *,
    advance: Callable[[int], None],
    wait: Callable[[], None],
    notes: list[str],
) -> Iterator[list[Sample]]:
    """Ask for every item, `server.concurrency` at a time; samples come in the order they are answered.

    The first request goes alone: what is wrong with all of them is said once, and it shows whether the server takes PLAIN.

    Raises:
        AmataxError: if the server refuses a request, or cannot be reached after the retries.
    """
    stop = threading.Event()
    extras = dict(PLAIN)
    with _refusals(server):
        first = _first(server, model, records, items[0], sampling, extras, stop)
    if not extras:
        notes.append(
            f"the server refuses {', '.join(PLAIN)}: if it has sampling habits of its own, they are in the responses"
        )
    advance(1)
    yield [first]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Sample | Exception] = queue.SimpleQueue()
    for item in items[1:]:
        todo.put(item)

    def work() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put(_sample(server, model, records, item, sampling, extras, stop))
            except Exception as error:
                answers.put(error)
                return

    # daemons: a run that is stopped does not wait for answers that are still being written
    for _ in range(min(server.concurrency, len(items) - 1)):
        threading.Thread(target=work, daemon=True).start()
    try:
        left = len(items) - 1
        while left:
            try:
                answer = answers.get(timeout=0.2)
            except queue.Empty:
                wait()
                continue
            if isinstance(answer, Exception):
                with _refusals(server):
                    raise answer
            left -= 1
            advance(1)
            wait()
            yield [answer]
    finally:
        stop.set()


def _first(
    server: Server,
    model: str,
    records: Sequence[Record],
    item: int,
    sampling: Sampling,
    extras: dict[str, Any],
    stop: threading.Event,
) -> Sample:
    """The first sample; empties `extras` if the server takes the request only without them."""
    try:
        return _sample(server, model, records, item, sampling, extras, stop)
    except _Refused as refused:
        if refused.status not in (400, 422):
            raise
        try:
            sample = _sample(server, model, records, item, sampling, {}, stop)
        except _Refused:
            raise refused from None
        extras.clear()
        return sample


def _sample(
    server: Server,
    model: str,
    records: Sequence[Record],
    item: int,
    sampling: Sampling,
    extras: dict[str, Any],
    stop: threading.Event,
) -> Sample:
    record = records[item // sampling.n]
    body = {
        "model": model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed_of(sampling.seed, item, sampling.n),
        **extras,
    }
    body |= {"prompt": prompt_text(record)} if sampling.raw else {"messages": record.messages}
    try:
        return _ask(
            server,
            "/v1/completions" if sampling.raw else "/v1/chat/completions",
            body,
            stop,
            read=lambda answer: _read_answer(answer, item, raw=sampling.raw),
        )
    except _Refused as refused:
        raise _Refused(refused.status, f"{refused.said} (line {record.line})") from None


def _read_answer(answer: Any, item: int, *, raw: bool) -> Sample:
    """A completion as a Sample; KeyError, TypeError and the like for one that is none."""
    choice = answer["choices"][0]
    text = choice["text"] if raw else choice["message"]["content"]
    thought = None if raw else choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
    if thought:
        raise _Refused(
            200, "the server cuts the reasoning out of its answers: start it without a reasoning parser, and again"
        )
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if not isinstance(text or "", str):
        raise TypeError(text)
    return Sample(
        item,
        (text or "").encode("utf-8", "replace").decode("utf-8"),
        tokens if isinstance(tokens, int) else None,
        "length" if choice.get("finish_reason") == "length" else "stop",
    )


def _ask(
    server: Server,
    path: str,
    body: dict[str, Any] | None,
    stop: threading.Event,
    read: Callable[[Any], Any] = lambda answer: answer,
) -> Any:
    """One request, tried again with growing pauses as long as that may help.

    Raises:
        _Refused: by the server, for good.
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
                raise _Refused(error.code, said) from None
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
        data: bytes = response.read()
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
def _refusals(server: Server) -> Iterator[None]:
    """A refusal as an AmataxError with the next step."""
    try:
        yield
    except _Refused as refused:
        hints = {
            401: f"set {KEYS[1]} to the server's key",
            403: f"set {KEYS[1]} to a key that may do this",
            404: "does the server have this model and this endpoint? See --server and --server-model",
        }
        hint = hints.get(refused.status, "change what the server refuses; the same command continues with what is done")
        raise AmataxError(f"{server.url}: {refused.said}", hint) from None
