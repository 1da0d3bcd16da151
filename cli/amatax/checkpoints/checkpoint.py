"""What the later stages know of an input: its tensors by disk name and byte range, its config, its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from amatax.recipes.schema import expand_home


class TensorEntry(NamedTuple):
    """A tensor on disk: `nbytes` bytes at `offset` of `path`, row-major."""

    name: str
    dtype: str  # as safetensors names it: BF16
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class WeightFile(NamedTuple):
    """A file of tensors, and what tells that it is still the same one."""

    path: Path
    size: int
    header: str  # sha256 of the safetensors header, or of the names and shapes in a .bin
    mtime_ns: int
    ctime_ns: int  # cannot be set back: catches a file replaced with its old mtime

    def changed(self) -> bool:
        """Whether the file on disk is another one by now."""
        try:
            stat = self.path.stat()
        except OSError:
            return True
        return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) != (self.size, self.mtime_ns, self.ctime_ns)


def architectures(config: dict[str, Any]) -> list[str]:
    """The classes that a config names; whatever else may stand there is none."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Only headers and configs have been read.

    Attributes:
        ref: as the recipe names it: a folder or a Hub id with its revision.
        commit: the Hub's commit, None for folders.
        folder: where the files are.
        root: what no file may lie outside of (a Hub cache links from snapshots to blobs beside them).
        tensors: by disk name, in disk order (file by file, by offset).
        remote: of a repository of which only headers and configs were fetched: its files, each with what identifies its
            content (git's blob id, or sha256). The others of `folder`'s files are not there. None: all are.
    """

    ref: str
    commit: str | None
    folder: Path
    root: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    files: tuple[WeightFile, ...]
    notes: list[str] = field(default_factory=list)
    remote: Mapping[str, str] | None = None

    @property
    def names(self) -> list[str]:
        """Its files, and those of its sub-folders, one level down."""
        if self.remote is not None:
            return sorted(name for name in self.remote if name.count("/") <= 1)
        top = [path.name for path in self.folder.iterdir()]
        nested = [f"{path.parent.name}/{path.name}" for path in self.folder.glob("[!.]*/*") if path.is_file()]
        return sorted(name for name in (*top, *nested) if not (self.folder / name).is_dir())

    def name_of(self, path: Path) -> str:
        """A file's name in the checkpoint, sub-folders included."""
        return path.relative_to(self.folder).as_posix()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def touched_ns(self) -> int:
        """When the files were last changed, or the folder was put where it is (renamed, or a link to it turned)."""
        times = [max(file.mtime_ns, file.ctime_ns) for file in self.files]
        if self.commit is None:
            path = Path(expand_home(self.ref)).absolute()  # links are not followed
            links = [place for place in (path, *path.parents) if place.is_symlink()]
            times += [self.folder.stat().st_ctime_ns, *(link.lstat().st_ctime_ns for link in links)]
        return max(times)

    @property
    def architectures(self) -> list[str]:
        """The classes that config.json names; empty if it names none."""
        return architectures(self.config)

    @property
    def loaded_by(self) -> str:
        """The name in transformers of the class that loads it: an Auto class for text generation, else the model's own."""
        first = next(iter(self.architectures), "AutoModelForCausalLM")
        own_code = self.config.get("auto_map")
        if isinstance(own_code, dict):
            return next((str(key) for key in own_code if str(key).startswith("AutoModel")), "AutoModel")
        return "AutoModelForCausalLM" if first.endswith(("ForCausalLM", "LMHeadModel")) else first

    @property
    def pinned(self) -> str:
        """The reference that will mean the same tomorrow: a folder, or a Hub id at its commit."""
        return f"{self.ref.partition('@')[0]}@{self.commit}" if self.commit else self.ref
