"""What the stand-in Hub keeps: repositories, their revisions as folders, and the contents of large files by sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tests.hub_xet import XetStore, write

PIECE = 1 << 20
LARGE = 1_000_000  # bytes: above, a file is LFS whatever it is called
GITATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refused(Exception):
    """A request that the Hub answers with no: status, error code, words."""

    def __init__(self, status: int, code: str = "", message: str = "no", **extra: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.extra = status, code, message, extra


class Store:
    """Repositories under a root folder, written so that a killed process finds them again.

    Attributes:
        repos: id -> {revision: folder}; a test may put folders of its own here.
        history: id -> {commit: folder} of what a revision once was.
        log: commit -> its parent, title and date.
        pulls: id -> its pull requests, in order.
        private: ids that only a valid token sees.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.lock = threading.RLock()
        for name in ("blobs", "uploads", "snapshots"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.xet = XetStore(self.root / "xet")
        self.hashes: dict[tuple[int, ...], tuple[str, str]] = {}
        state = self.root / "state.json"
        known = json.loads(state.read_text()) if state.exists() else {}
        self.repos = {id: {n: Path(f) for n, f in refs.items()} for id, refs in known.get("repos", {}).items()}
        self.history = {id: {c: Path(f) for c, f in old.items()} for id, old in known.get("history", {}).items()}
        self.log: dict[str, dict[str, str]] = known.get("log", {})
        self.pulls: dict[str, list[dict[str, Any]]] = known.get("pulls", {})
        self.private: set[str] = set(known.get("private", []))

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "repos": {id: {n: str(f) for n, f in refs.items()} for id, refs in self.repos.items()},
            "history": {id: {c: str(f) for c, f in old.items()} for id, old in self.history.items()},
            "log": self.log,
            "pulls": self.pulls,
            "private": sorted(self.private),
        }
        write(self.root / "state.json", json.dumps(state).encode())

    # --- revisions -----------------------------------------------------------------------------------------------

    def head(self, repo: str, name: str) -> str:
        """The commit that a branch, tag or pull request stands at."""
        folder = self.repos[repo][name]
        if folder.is_relative_to(self.root / "snapshots"):
            return folder.name
        return hashlib.sha1(f"{repo}@{name}:{folder.name}".encode()).hexdigest()

    def commit(self, repo: str, revision: str) -> str | None:
        """The 40-digit commit of a revision (or of itself)."""
        for name in list(self.repos.get(repo, {})):
            if revision in (name, sha := self.head(repo, name)):
                return sha
        return revision if revision in self.history.get(repo, {}) else None

    def folder(self, repo: str, revision: str) -> Path:
        """Where a revision's files are."""
        for name, folder in self.repos[repo].items():
            if revision in (name, self.head(repo, name)):
                return folder
        return self.history[repo][revision]

    def move(self, repo: str, revisions: dict[str, Path]) -> None:
        """Let revisions stand for other folders; what they were stays readable by its commit."""
        for name, folder in revisions.items():
            if name in self.repos[repo]:
                self.history.setdefault(repo, {})[self.head(repo, name)] = self.repos[repo][name]
            self.repos[repo][name] = folder

    def create(self, repo: str, private: bool) -> None:
        """A new repository, with the one file that the Hub puts there."""
        with self.lock:
            if repo in self.repos:
                raise Refused(409, message="You already created this model repo")
            self.repos[repo] = {}
            if private:
                self.private.add(repo)
            self.add_commit(repo, "main", "initial commit", [file_operation(".gitattributes", GITATTRIBUTES)])

    def branch(self, repo: str, name: str, revision: str) -> None:
        """A further name for a revision."""
        with self.lock:
            if name in self.repos[repo]:
                raise Refused(409, message="Reference already exists")
            self.repos[repo][name] = self.folder(repo, revision)
            self.save()

    def delete_branch(self, repo: str, name: str) -> None:
        """Its commits stay readable."""
        with self.lock:
            if name == "main":
                raise Refused(403, message="the main branch cannot be deleted")
            del self.repos[repo][name]
            self.save()

    def open_pull(self, repo: str, title: str, description: str, author: str) -> int:
        """A pull request that begins where main is; its number."""
        with self.lock:
            pulls = self.pulls.setdefault(repo, [])
            base = self.folder(repo, "main")
            pulls.append(
                {"title": title, "description": description, "author": author, "status": "draft", "base": str(base)}
            )
            self.repos[repo][f"refs/pr/{len(pulls)}"] = base
            self.save()
            return len(pulls)

    def merge_pull(self, repo: str, number: int) -> None:
        """Move main to a pull request's head, if main is still where the pull request began."""
        with self.lock:
            pull = self.pulls[repo][number - 1]
            if pull["base"] != str(self.folder(repo, "main")):
                raise Refused(409, message="main has moved since")
            self._move(repo, "main", self.repos[repo][f"refs/pr/{number}"])
            pull["status"], pull["merged"] = "merged", self.head(repo, "main")
            self.save()

    def _move(self, repo: str, name: str, folder: Path) -> None:
        """Let a revision stand elsewhere; where it was stays readable."""
        if name in self.repos[repo]:
            self.history.setdefault(repo, {})[self.head(repo, name)] = self.repos[repo][name]
        self.repos[repo][name] = folder
        self.history.setdefault(repo, {})[self.head(repo, name)] = folder

    def add_commit(
        self,
        repo: str,
        name: str,
        title: str,
        operations: list[dict[str, Any]],
        parent: str | None = None,
        content: Callable[[str], Path | None] | None = None,
    ) -> str:
        """A new snapshot of hard links, and `name` moved to it. `content` finds an LFS file's content by its sha256."""
        with self.lock:
            known = name in self.repos[repo]
            head = self.head(repo, name) if known else ""
            if parent and parent != head:
                raise Refused(412, message="A commit has happened since. Please refresh and try again.")
            home = self.root / "snapshots" / repo
            home.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=self.root / "uploads"))
            if known:
                shutil.copytree(self.repos[repo][name], new, copy_function=self._link, dirs_exist_ok=True)
            for operation in operations:
                self._apply(new, operation["key"], operation["value"], content)
            tree = [(path, self.oids(new / path)[0]) for path in files(new)]
            sha = hashlib.sha1(json.dumps([head, title, tree]).encode()).hexdigest()
            if (home / sha).exists():  # of a process that was killed before it was known
                shutil.rmtree(home / sha)
            new.rename(home / sha)
            self._move(repo, name, home / sha)
            self.log[sha] = {"parent": head, "title": title, "date": now()}
            self.save()
            return sha

    def _link(self, source: str, target: str) -> None:
        """A hard link to what this store owns, a copy of what a test may still write to."""
        if Path(source).is_relative_to(self.root):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    def _apply(
        self, folder: Path, key: str, value: dict[str, Any], content: Callable[[str], Path | None] | None
    ) -> None:
        from base64 import b64decode

        path = folder / value["path"].strip("/")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Refused(400, message=f"no path in a repository: {value['path']}")
        if key in ("deletedFile", "deletedFolder"):
            if not (path.is_file() if key == "deletedFile" else path.is_dir()):
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            shutil.rmtree(path) if key == "deletedFolder" else path.unlink()
            return
        found = content(value["oid"]) if key == "lfsFile" and content else None
        if key == "lfsFile" and found is None:
            raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # never written through: it is shared with the commit before
        if found:
            self._link(str(found), str(path))
        else:
            path.write_bytes(b64decode(value["content"]))

    # --- contents ------------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        """Where an LFS file's content is, or would be."""
        return self.root / "blobs" / sha256

    def receive(self, stream: Callable[[int], bytes], sha256: str) -> None:
        """Keep an LFS file's content, once all of it has come and is what it should be."""
        with tempfile.NamedTemporaryFile(dir=self.root / "uploads", delete=False) as file:
            digest = hashlib.sha256()
            while piece := stream(PIECE):
                digest.update(piece)
                file.write(piece)
        self.adopt(Path(file.name), sha256, digest.hexdigest())

    def adopt(self, file: Path, sha256: str, found: str = "") -> None:
        """Take a file as the content of that sha256."""
        if (found or digest_of(file)) != sha256:
            file.unlink()
            raise Refused(400, message=f"the content is not {sha256}")
        file.replace(self.blob(sha256))

    def content(self, sha256: str, endpoint: str, folder: Path) -> Path | None:
        """An LFS file's content: uploaded, by xet, or in a folder that a test gave."""
        if self.blob(sha256).exists():
            return self.blob(sha256)
        if file := self.xet.by_sha256.get(sha256):
            target = self.root / "uploads" / f"{sha256}.xet"
            self.xet.fetch(file, endpoint, target)
            self.adopt(target, sha256)
            return self.blob(sha256)
        held = (folder / path for path in files(folder) if is_lfs(path, (folder / path).stat().st_size))
        return next((path for path in held if self.oids(path)[1] == sha256), None)

    def oids(self, path: Path) -> tuple[str, str]:
        """A file's git blob id and, if it is LFS, its sha256 (else empty); kept while the file stays as it is."""
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)  # a hard link is the same file
        if key not in self.hashes:
            sha256 = digest_of(path) if is_lfs(path.name, stat.st_size) else ""
            data = pointer(sha256, stat.st_size) if sha256 else path.read_bytes()
            self.hashes[key] = (hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), sha256)
        return self.hashes[key]

    def entry(self, folder: Path, path: str) -> dict[str, Any]:
        """A file or folder as the Hub's tree lists it."""
        place = folder / path
        if place.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        size = place.stat().st_size
        oid, sha256 = self.oids(place)
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
        if sha256:
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": len(pointer(sha256, size))}
            if file := self.xet.by_sha256.get(sha256):
                entry["xetHash"] = file.hash
        return entry


def is_lfs(name: str, size: int) -> bool:
    """Whether the Hub keeps a file outside git: weights by their name, anything by its size."""
    return size > 0 and (name.endswith((".safetensors", ".bin")) or size > LARGE)


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in an LFS file's place."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def digest_of(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[str]:
    """The files below a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def file_operation(path: str, data: bytes) -> dict[str, Any]:
    """A small file as a commit carries it."""
    from base64 import b64encode

    return {"key": "file", "value": {"path": path, "content": b64encode(data).decode(), "encoding": "base64"}}


def now() -> str:
    """The time as the Hub writes it."""
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def copy_pieces(parts: list[Path], target: BinaryIO) -> None:
    """Put files end to end."""
    for part in parts:
        with part.open("rb") as file:
            shutil.copyfileobj(file, target, PIECE)
