"""A Hub on loopback for the real huggingface_hub client: folders served as repositories, uploads, refusals, faults.

`python -m tests.hub --root DIR` serves what is kept under DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub_api import Api
from tests.hub_storage import Store
from tests.hub_wire import Fault

__all__ = ["Fault", "Hub", "HubProcess", "hub_process", "running_hub"]


class Hub(Store):
    """Repositories by id: {revision: folder}. The commit of a test's own folder is derived from the folder's name.

    Attributes:
        repos: id -> {revision: folder}.
        moves: id -> {revision: folder} that it has from the first look at the repository on.
        requests: (method, path) of everything asked, in order.
        authorizations: every Authorization that came.
        refuse: id -> (status, X-Error-Code) for repositories that answer no.
        tokens: token -> {"name", "role": "write" or "read", "orgs": where else it writes}; none: every write is allowed.
        private: ids that only a valid token sees.
        gated: id -> "auto" or "manual" for repositories whose files only the tokens in `granted` get.
        faults: what goes wrong, in order.
        part: LFS uploads above this size come in parts of it (0: never).
        sent: bytes of files that were sent.
        url: where it listens.
        cdn: the same server by the name that large files have.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.moves: dict[str, dict[str, Path]] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str] = set()
        self.refuse: dict[str, tuple[int, str]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.gated: dict[str, str] = {}
        self.granted: set[str] = set()
        self.faults: list[Fault] = []
        self.part = 0
        self.sent = 0
        self.url = ""
        self.cdn = ""

    def struck(self, method: str, path: str) -> Fault | None:
        """Record a request; the fault that hits it."""
        with self.lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.strikes(f"{method} {path}")), None)

    def listen(self, port: int = 0) -> ThreadingHTTPServer:
        """A server for this Hub, not yet running."""
        server = Server(("127.0.0.1", port), type("Connection", (Api,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.cdn = f"http://localhost:{server.server_port}"
        return server


class Server(ThreadingHTTPServer):
    """A server that says nothing of clients that go away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def running_hub(root: Path | None = None) -> Iterator[Hub]:
    """A Hub that listens until the block ends, with its uploads under `root` (without: in a folder that ends with it)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        hub = Hub(root or Path(own))
        server = hub.listen()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass
class HubProcess:
    """A Hub in a process of its own, that can be killed and started again at its port."""

    root: Path
    port: int = 0
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def start(self) -> None:
        """Start it; it listens when this returns."""
        command = [sys.executable, "-m", "tests.hub", "--root", str(self.root), "--port", str(self.port)]
        command += ["--tokens", json.dumps(self.tokens), "--faults", json.dumps([asdict(f) for f in self.faults])]
        home = Path(__file__).parents[1]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home)
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the Hub did not start"
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None


@contextmanager
def hub_process(
    root: Path, port: int = 0, tokens: dict[str, dict[str, Any]] | None = None, faults: list[Fault] | None = None
) -> Iterator[HubProcess]:
    """A Hub in a process of its own until the block ends; its state stays under `root`."""
    hub = HubProcess(root, port, tokens or {}, faults or [])
    hub.start()
    try:
        yield hub
    finally:
        hub.kill()


def main() -> None:
    """Serve a folder until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=json.loads, default={})
    parser.add_argument("--faults", type=json.loads, default=[])
    given = parser.parse_args()
    hub = Hub(given.root)
    hub.tokens = given.tokens
    hub.faults = [Fault(**fault) for fault in given.faults]
    server = hub.listen(given.port)
    print(hub.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    os.environ.pop("HF_TOKEN", None)
    main()
