"""Files of a repository into huggingface_hub's cache, compared with what the Hub says they are: the client looks at sizes alone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from amatax import __version__
from amatax.checkpoints.hub_client import patiently
from amatax.checkpoints.hub_errors import hub_error
from amatax.errors import AmataxError, HubError

UNCHECKED = "amatax-unchecked"  # beside a repository's blobs: "commit/name" of what was fetched and is not compared yet
SHA256 = 64  # letters; git's blob ids have fewer
AT_ONCE = 4  # files that are compared


@dataclass(frozen=True)
class Download:
    """What a merge reads of a repository.

    Attributes:
        repo: owner/name.
        commit: of the files.
        revision: by which it was asked for; "" for main.
        folder: the snapshot in the cache.
        files: name -> (what identifies its content: sha256, or git's blob id; bytes, 0 if it is small).
        named_by: the file by which the cache learns what the revision stands for.
    """

    repo: str
    commit: str
    revision: str
    folder: Path
    files: Mapping[str, tuple[str, int]]
    named_by: str = "config.json"

    @property
    def root(self) -> Path:
        """The repository in the cache."""
        return self.folder.parent.parent

    def to_come(self) -> int:
        """Bytes that are not in the cache yet; what an interrupted download left is."""
        needed = 0
        for name, (digest, size) in self.files.items():
            if size and not (self.folder / name).exists() and not (self.root / "blobs" / digest).exists():
                needed += size
                for part in (self.root / "blobs").glob(f"{digest}*.incomplete"):
                    with suppress(OSError):  # finished this moment, by another process
                        needed -= part.stat().st_blocks * 512
        return max(0, needed)


def check_room(downloads: Sequence[Download], beside: Mapping[Path, int] | None = None) -> None:
    """Whether the cache's disk holds all that is still to come.

    Args:
        downloads: all that one merge wants.
        beside: folder -> bytes of what else will be written; it counts if it is on the same disk.

    Raises:
        HubError: naming the way out.
    """
    wanted = {download.repo: download.to_come() for download in downloads}
    if not sum(wanted.values()):
        return
    root = downloads[0].root
    also = sum(size for folder, size in (beside or {}).items() if folder.stat().st_dev == root.stat().st_dev)
    free = shutil.disk_usage(root).free
    if sum(wanted.values()) + also > free:
        parts = [f"{repo} {size / 1e9:.2f} GB" for repo, size in wanted.items() if size]
        parts += [f"the output {also / 1e9:.2f} GB"] * bool(also)
        raise HubError(
            f"the cache's disk has {free / 1e9:.2f} GB free, and still to come are {', '.join(parts)}",
            "free some space, name a folder on another disk in HF_HUB_CACHE, or merge with --stream",
        )


def bring(download: Download) -> None:
    """Fetch and compare what is not there; compare what an interrupted run fetched.

    Raises:
        HubError: if it cannot be fetched, or is something else than the Hub says; what has arrived well is kept.
    """
    from huggingface_hub import snapshot_download

    check_room([download])
    _mark(download, [name for name in download.files if not (download.folder / name).exists()])
    patterns = sorted(escape(name) for name in download.files)
    options: dict[str, Any] = {"library_name": "amatax", "library_version": __version__}
    try:
        patiently(
            lambda: snapshot_download(download.repo, revision=download.commit, allow_patterns=patterns, **options)
        )
        marked = [name for name in download.files if f"{download.commit}/{name}" in _marks(download.root)]
        compare(download.repo, download.folder, {name: download.files[name][0] for name in marked})
        _mark(download, marked, done=True)
        remember_name(download)
    except AmataxError:
        raise
    except Exception as error:
        raise hub_error(error, download.repo, download.revision) from error


def remember_name(download: Download) -> None:
    """Let the cache know what a revision's name stands for, now that everything is there: it is asked without a network."""
    fetch_file(download.repo, download.named_by, download.revision or None)


def fetch_file(repo: str, name: str, revision: str | None, digest: str = "") -> Path:
    """One small file, compared if its digest is given.

    Raises:
        HubError: if it cannot be fetched, or is another.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repo, name, revision=revision, library_name="amatax", library_version=__version__))
    except Exception as error:
        raise hub_error(error, repo, revision or "") from error
    folder = path.parents[name.count("/")]
    compare(repo, folder, {name: digest})
    return path


def compare(repo: str, folder: Path, digests: Mapping[str, str]) -> None:
    """Compare files with their digests; those that are others are removed, so that they are fetched again.

    Raises:
        HubError: naming one.
    """
    names = [name for name, digest in digests.items() if digest]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda name: digest_of(folder / name, digests[name]), names))
    wrong = [name for name, digest in zip(names, found, strict=True) if digest != digests[name]]
    root = folder.parent.parent.resolve()
    for name in wrong:
        blob = (folder / name).resolve()
        (folder / name).unlink(missing_ok=True)
        if blob.is_relative_to(root):
            blob.unlink(missing_ok=True)
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        hint = "they were removed: run the same command again; if it comes again, something on the way changes files"
        raise HubError(f"{repo}: {wrong[0]} arrived as other bytes than the Hub's hash says{more}", hint)


def digest_of(path: Path, like: str = "") -> str:
    """sha256 of a file; or, where a shorter digest is to be compared with, how git names its content."""
    if not like or len(like) == SHA256:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data: Any = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _marks(root: Path) -> set[str]:
    path = root / UNCHECKED
    return set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()


def _mark(download: Download, names: Sequence[str], *, done: bool = False) -> None:
    """Write down that files are to be compared, or that they were."""
    ours = {f"{download.commit}/{name}" for name in names}
    marks = _marks(download.root)
    left = marks - ours if done else marks | ours
    path = download.root / UNCHECKED
    if left == marks:  # of a cache that may only be read
        return
    if not left:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_name(f"{UNCHECKED}.new")
    fresh.write_text("".join(f"{line}\n" for line in sorted(left)), encoding="utf-8")
    fresh.replace(path)
