"""A server on loopback that answers as OpenAI-compatible ones do, and fails as they do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes, dict[str, str]]


class Server:
    """What is asked of it, and how it answers.

    Attributes:
        requests: (path, headers, body) of every POST, in order.
        faults: answers that are given first, one for each request; None hangs up, a number sleeps so long before it answers.
        answer: body -> text of the answer.
        most_at_once: the highest number of requests in hand at one time.
        pause: seconds that an answer takes.
    """

    def __init__(self) -> None:
        self.url = ""
        self.models = ["family-rlhf"]
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.faults: list[Answer | float | None] = []
        self.answer: Callable[[dict[str, Any]], str] = lambda body: f"answer {body['seed']} to {asked(body)}"
        self.check: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self.usage = True
        self.message: dict[str, Any] = {}
        self.pause = 0.0
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()


def asked(body: dict[str, Any]) -> str:
    """The last turn, or the raw prompt."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def refusal(status: int, message: str, **headers: str) -> Answer:
    return (
        status,
        json.dumps({"error": {"message": message}}).encode(),
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that listens until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            data = {"data": [{"id": name} for name in server.models]}
            self.send(200, json.dumps(data).encode(), {}) if known else self.send(404, b"{}", {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append((self.path, dict(self.headers), body))
                fault = server.faults.pop(0) if server.faults else ...
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            answer: Answer | None = None
            try:
                if isinstance(fault, float | int):
                    time.sleep(fault)
                if fault is None:
                    self.close_connection = True
                elif isinstance(fault, tuple):
                    answer = fault
                else:
                    time.sleep(server.pause)
                    answer = server.check(body) or self.completion(body)
            finally:
                with server.lock:  # before the client has its answer, and may ask again
                    server.at_once -= 1
            if answer is not None:
                self.send(*answer)

        def completion(self, body: dict[str, Any]) -> Answer:
            text = server.answer(body)
            choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if text.endswith("...") else "stop"}
            if self.path == "/v1/completions":
                choice["text"] = text
            elif self.path == "/v1/chat/completions":
                choice["message"] = {"role": "assistant", "content": text, **server.message}
            else:
                return refusal(404, "no such path")
            answer = {"choices": [choice]}
            if server.usage:
                answer["usage"] = {"completion_tokens": len(text.split())}
            return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            try:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client went away, as in a test of timeouts

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
