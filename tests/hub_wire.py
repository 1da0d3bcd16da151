"""How the stand-in Hub speaks HTTP: bodies in pieces, ranges, and the faults that a test asks for."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_storage import PIECE, Refused

if TYPE_CHECKING:
    from tests.hub import Hub


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" the pattern is found in.

    Attributes:
        times: how many requests it hits; then it is spent.
        skip: how many of those that match pass first.
        status: this status is answered instead, with `retry_after` and `code` (X-Error-Code) as headers.
        cut: the connection ends after so many bytes of the body, though Content-Length has all of them (of a PUT: after
            so many bytes received). It ends as a close does, or with `reset`.
        short: the body ends after so many bytes, and Content-Length says so.
        flip: the byte at this offset of the body is another.
        ignore_range: the whole file is sent with 200.
        stall: seconds before the answer.
        hits: the requests that it hit.
    """

    pattern: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    retry_after: int | None = None
    code: str = ""
    cut: int | None = None
    reset: bool = False
    short: int | None = None
    flip: int | None = None
    ignore_range: bool = False
    stall: float = 0.0
    hits: list[str] = field(default_factory=list)

    def strikes(self, request: str) -> bool:
        """Whether it hits this request."""
        if len(self.hits) >= self.times or not re.search(self.pattern, request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits.append(request)
        return True


class Wire(BaseHTTPRequestHandler):
    """One connection to the Hub."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.raw, self.query = address.path, parse_qs(address.query)
        self.left = int(self.headers.get("Content-Length") or 0)
        self.chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        self.fault = Fault("")
        if not self.raw.startswith("/own/"):  # the Hub's own calls to itself
            self.fault = self.hub.struck(self.command, unquote(self.raw)) or self.fault
            if self.headers.get("Authorization") and "/xet/" not in self.raw:
                self.hub.authorizations.add(self.headers["Authorization"])
        time.sleep(self.fault.stall)
        try:
            if self.fault.status:
                again = self.fault.retry_after
                raise Refused(
                    self.fault.status,
                    self.fault.code,
                    "a fault",
                    headers={} if again is None else {"Retry-After": str(again)},
                )
            if self.command == "PUT" and self.fault.cut is not None:
                self.receive_exactly(self.fault.cut)
                self.break_off()
                return
            self.route()
        except Refused as no:
            headers = {"X-Error-Message": no.message, **no.extra.get("headers", {})}
            if no.code:
                headers["X-Error-Code"] = no.code
            self.send_json({"error": no.message, **no.extra.get("body", {})}, no.status, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    @abstractmethod
    def route(self) -> None:
        """Answer one request."""

    # --- the request's body --------------------------------------------------------------------------------------

    def receive(self, most: int = PIECE) -> bytes:
        """The next piece of the request's body, at most so long; empty at its end."""
        if self.chunked and not self.left:
            self.left = int(self.rfile.readline().split(b";")[0], 16)
            if not self.left:
                self.chunked = False
                self.rfile.readline()
        piece = self.rfile.read(min(most, self.left))
        if self.left and not piece:
            raise ConnectionResetError("the client went away")
        self.left -= len(piece)
        if self.chunked and not self.left:
            self.rfile.readline()
        return piece

    def receive_exactly(self, size: int) -> bytes:
        """The next bytes of the request's body, fewer at its end."""
        pieces: list[bytes] = []
        while size and (piece := self.receive(min(size, PIECE))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def receive_all(self) -> bytes:
        """The request's body."""
        return self.receive_exactly(1 << 40)

    def receive_json(self) -> Any:
        """The request's body, parsed."""
        return json.loads(self.receive_all() or b"{}")

    # --- the answer ----------------------------------------------------------------------------------------------

    def send_json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.deliver(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(body).encode())

    def send_file(self, path: Path, headers: dict[str, str]) -> None:
        """Answer with a file, or with the range of it that was asked for."""
        size = path.stat().st_size
        start, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and any(asked.groups()) and not self.fault.ignore_range and self.command == "GET":
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= end:
                raise Refused(416, message="range", headers={"Content-Range": f"bytes */{size}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.deliver(status, {"Accept-Ranges": "bytes", **headers}, path, start, end)

    def deliver(
        self, status: int, headers: dict[str, str], body: bytes | Path, start: int = 0, end: int | None = None
    ) -> None:
        """Send an answer, with what its fault does to the body."""
        while self.receive():
            pass
        end = len(body) if isinstance(body, bytes) else end or 0
        if self.fault.short is not None:
            end = min(end, start + self.fault.short)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut is not None:
            end = min(end, start + self.fault.cut)
        if self.fault.flip is not None and start + self.fault.flip < end:
            at = start + self.fault.flip
            self.send_span(body, start, at)
            self.connection.sendall(bytes([byte_at(body, at) ^ 0xFF]))
            start = at + 1
        self.send_span(body, start, end)
        if self.fault.cut is not None:
            self.break_off()

    def send_span(self, body: bytes | Path, start: int, end: int) -> None:
        """Send the bytes start..end of a body."""
        if isinstance(body, bytes):
            self.connection.sendall(body[start:end])
        elif end > start:
            with body.open("rb") as file:
                self.hub.sent += self.connection.sendfile(file, start, end - start)

    def break_off(self) -> None:
        """End the connection."""
        self.close_connection = True
        if self.fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def byte_at(body: bytes | Path, at: int) -> int:
    """One byte of a body."""
    if isinstance(body, bytes):
        return body[at]
    with body.open("rb") as file:
        file.seek(at)
        return file.read(1)[0]
