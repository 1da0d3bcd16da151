"""A Hub on loopback that serves folders to the real huggingface_hub client: repositories, revisions, files, and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by id: {revision: folder}. Every revision's commit is derived from its folder's name.

    Attributes:
        moves: id -> {revision: folder} that it has from the first look at the repository on.
        requests: (method, path) of everything asked, in order.
        refuse: id -> (status, X-Error-Code) for repositories that answer no.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Path]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.moves: dict[str, dict[str, Path]] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def commit(self, repo: str, revision: str) -> str | None:
        """The 40-digit commit of a revision (or of itself)."""
        for name, folder in self.repos.get(repo, {}).items():
            sha = hashlib.sha1(f"{repo}@{name}:{folder.name}".encode()).hexdigest()
            if revision in (name, sha):
                return sha
        return None

    def folder(self, repo: str, revision: str) -> Path:
        """Where a revision's files are."""
        return next(f for n, f in self.repos[repo].items() if revision in (n, self.commit(repo, n)))


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that listens until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
                self.api(found[1], found[2] or "revision", found[3] or "main")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], found[2], found[3])
            else:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def known(self, repo: str, revision: str) -> str | None:
            if repo in hub.refuse:
                status, code = hub.refuse[repo]
                self.send(status, b'{"error": "no"}', {"X-Error-Code": code} if code else {})
            elif repo not in hub.repos:
                self.send(404, b'{"error": "no"}', {"X-Error-Code": "RepoNotFound"})
            elif (commit := hub.commit(repo, revision)) is None:
                self.send(404, b'{"error": "no"}', {"X-Error-Code": "RevisionNotFound"})
            else:
                return commit
            return None

        def api(self, repo: str, what: str, revision: str) -> None:
            if (commit := self.known(repo, revision)) is None:
                return
            folder = hub.folder(repo, revision)
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if what == "tree":
                body: Any = [
                    {"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": etag(p)}
                    for p in files
                ]
            else:
                siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
                body = {
                    "_id": "0",
                    "id": repo,
                    "modelId": repo,
                    "sha": commit,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                }
            self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            hub.repos[repo].update(hub.moves.pop(repo, {}))

        def file(self, repo: str, revision: str, name: str) -> None:
            if (commit := self.known(repo, revision)) is None:
                return
            path = hub.folder(repo, revision) / name
            if not path.is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            self.send(200, path.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{etag(path)}"'})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(path: Path) -> str:
    """git's blob id, as the Hub gives for small files."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
