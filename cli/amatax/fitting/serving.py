"""Sampling from an OpenAI-compatible server that the user runs: many requests at a time, results as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amatax.errors import AmataxError
from amatax.fitting.client import RefusedError, Server, ask, refusals
from amatax.fitting.records import Record, prompt_text
from amatax.fitting.sampling import Sample, Sampling, Watching, seed_of

# servers have sampling habits of their own (vLLM takes the model's top_k and repetition_penalty, llama.cpp has min_p and top_k)
PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}

ENDED = (
    None,
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
)  # others (length, content_filter, ...) cut an answer off


def served_model(server: Server) -> str:
    """The name of the only model that the server has.

    Raises:
        AmataxError: if it has none or several, or does not answer.
    """
    try:
        answer = ask(server, "/v1/models", None, threading.Event())
        names = [str(model["id"]) for model in answer["data"]]
    except (RefusedError, KeyError, TypeError) as error:
        said = f" ({error.said})" if isinstance(error, RefusedError) else ""
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


@dataclass
class Requests:
    """What is asked for, item by item.

    Attributes:
        server, model: who is asked, and for which of its models.
        records: the prompts.
        sampling: how responses are drawn; item = prompt index * n + sample index.
        extras: beside the standard fields; none of them if the server refuses them.
        stop: nothing more is wanted.
    """

    server: Server
    model: str
    records: Sequence[Record]
    sampling: Sampling
    extras: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))
    stop: threading.Event = field(default_factory=threading.Event)

    def first(self, item: int) -> Sample:
        """The first sample; drops `extras` if the server takes the request only without them."""
        try:
            return self.sample(item)
        except RefusedError as refused:
            if refused.status not in (400, 422):
                raise
            kept, self.extras = self.extras, {}
            try:
                return self.sample(item)
            except RefusedError:
                self.extras = kept
                raise refused from None

    def sample(self, item: int) -> Sample:
        """Ask for one item."""
        record, sampling = self.records[item // self.sampling.n], self.sampling
        body = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed_of(sampling.seed, item, sampling.n),
            **self.extras,
        }
        body |= {"prompt": prompt_text(record)} if sampling.raw else {"messages": record.messages}
        path = "/v1/completions" if sampling.raw else "/v1/chat/completions"
        try:
            return ask(
                self.server, path, body, self.stop, read=lambda answer: _read_answer(answer, item, raw=sampling.raw)
            )
        except RefusedError as refused:
            raise RefusedError(refused.status, f"{refused.said} (line {record.line})") from None


def serve_samples(
    requests: Requests, items: Sequence[int], watcher: Watching, notes: list[str]
) -> Iterator[list[Sample]]:
    """Ask for every item, `server.concurrency` at a time; samples come in the order they are answered.

    The first request goes alone: what is wrong with all of them is said once, and it shows whether the server takes PLAIN.

    Raises:
        AmataxError: if the server refuses a request, or cannot be reached after the retries.
    """
    server = requests.server
    with refusals(server):
        first = requests.first(items[0])
    if not requests.extras:
        notes.append(
            f"the server refuses {', '.join(PLAIN)}: if it has sampling habits of its own, they are in the responses"
        )
    watcher.advance(1)
    yield [first]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Sample | Exception] = queue.SimpleQueue()
    for item in items[1:]:
        todo.put(item)

    def work() -> None:
        while not requests.stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put(requests.sample(item))
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
                watcher.wait()
                continue
            if isinstance(answer, Exception):
                with refusals(server):
                    raise answer
            left -= 1
            watcher.advance(1)
            watcher.wait()
            yield [answer]
    finally:
        requests.stop.set()


def _read_answer(answer: Any, item: int, *, raw: bool) -> Sample:
    """A completion as a Sample; KeyError, TypeError and the like for one that is none."""
    choice = answer["choices"][0]
    text = choice["text"] if raw else choice["message"]["content"]
    thought = None if raw else choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
    if thought:
        raise RefusedError(
            200, "the server cuts the reasoning out of its answers: start it without a reasoning parser, and again"
        )
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if not isinstance(text or "", str):
        raise TypeError(text)
    return Sample(
        item,
        (text or "").encode("utf-8", "replace").decode("utf-8"),
        tokens if isinstance(tokens, int) else None,
        "stop" if choice.get("finish_reason") in ENDED else "length",
    )
