"""The xet storage of the stand-in Hub: shards and xorbs on disk, and how a file is put together from them."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROW = 48  # bytes: every header and entry of a shard
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30

FETCH = """
import sys, time, hf_xet
endpoint, hash, size, target = sys.argv[1:]
with hf_xet.XetSession().new_file_download_group(
    endpoint=endpoint, token="own", token_expiry_unix_secs=int(time.time()) + 3600
) as group:
    group.start_download_file(hf_xet.XetFileInfo(hash, int(size)), target)
"""


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `end` of a xorb, `size` bytes unpacked."""

    xorb: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class XetFile:
    """What a shard says of a file."""

    hash: str
    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class XetStore:
    """A content-addressed store that speaks hf_xet's HTTP protocol.

    Attributes:
        files: the files of all shards by their xet hash.
        by_sha256: the same by their sha256.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, XetFile] = {}
        self.by_sha256: dict[str, XetFile] = {}
        for name in ("xorbs", "shards"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for shard in (root / "shards").iterdir():
            self._index(shard.read_bytes())

    def xorb(self, hash: str) -> Path:
        """Where a xorb is."""
        return self.root / "xorbs" / hash

    def add_xorb(self, hash: str, data: bytes) -> bool:
        """Keep a xorb; whether it is new."""
        if self.xorb(hash).exists():
            return False
        write(self.xorb(hash), data)
        return True

    def add_shard(self, data: bytes) -> str | None:
        """Keep a shard, if every xorb that its files need is here; otherwise the missing one."""
        for file in parse_shard(data):
            for term in file.terms:
                if not self.xorb(term.xorb).exists():
                    return term.xorb
        write(self.root / "shards" / hashlib.sha256(data).hexdigest(), data)
        self._index(data)
        return None

    def _index(self, data: bytes) -> None:
        for file in parse_shard(data):
            self.files[file.hash] = file
            if file.sha256:
                self.by_sha256[file.sha256] = file

    def reconstruction(self, file: XetFile, first: int, last: int, url: str) -> dict[str, Any]:
        """The terms that cover bytes first..last (inclusive), and where their chunks lie in their xorbs under `url`."""
        terms: list[dict[str, Any]] = []
        skipped, at = 0, 0
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in file.terms:
            begin, at = at, at + term.size
            if at <= first or begin > last:
                continue
            if not terms:
                skipped = first - begin
            chunks = {"start": term.start, "end": term.end}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            offsets = chunk_offsets(self.xorb(term.xorb))
            span = {"start": offsets[term.start], "end": offsets[term.end] - 1}
            known = fetch.setdefault(term.xorb, [])
            if all(info["range"] != chunks for info in known):
                known.append({"range": chunks, "url": f"{url}/{term.xorb}", "url_range": span})
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch}

    def fetch(self, file: XetFile, endpoint: str, target: Path) -> None:
        """Put a file together, by hf_xet itself in a process of its own."""
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, "-c", FETCH, endpoint, file.hash, str(file.size), str(target)]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HOME": home})


def parse_shard(data: bytes) -> list[XetFile]:
    """The files that a shard lists."""
    files, at = [], ROW
    while data[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", data, at + 32)
        hash, at = hex_hash(data[at : at + 32]), at + ROW
        terms = []
        for _ in range(count):
            _, size, start, end = struct.unpack_from("<IIII", data, at + 32)
            terms.append(Term(hex_hash(data[at : at + 32]), size, start, end))
            at += ROW
        at += ROW * count if flags & VERIFIED else 0
        sha256 = hex_hash(data[at : at + 32]) if flags & WITH_SHA256 else ""
        at += ROW if flags & WITH_SHA256 else 0
        files.append(XetFile(hash, sha256, tuple(terms)))
    return files


def hex_hash(raw: bytes) -> str:
    """A hash as xet writes it: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def chunk_offsets(xorb: Path) -> list[int]:
    """Where each chunk of a xorb begins, and where the last one ends."""
    offsets, size = [0], xorb.stat().st_size
    with xorb.open("rb") as file:
        while offsets[-1] + 8 <= size:
            file.seek(offsets[-1])
            head = file.read(8)
            if head[0] != 0:  # the footer
                break
            offsets.append(offsets[-1] + 8 + int.from_bytes(head[1:4], "little"))
    assert all(a < b for a, b in pairwise(offsets))
    return offsets


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
