"""What the later stages know of an input: its tensors by disk name and byte range, its config, its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from amatax.recipes.schema import expand_home

TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


class TensorEntry(NamedTuple):
    """A tensor on disk: `nbytes` bytes at `offset` of `path`, row-major."""

    name: str
    dtype: str  # as safetensors names it: BF16
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    delta: LowRank | None = None  # what an adapter adds to it, when it is read

    @property
    def reads(self) -> int:
        """Bytes read, the adapter's among them."""
        return self.nbytes + sum(entry.nbytes for entry in (self.delta.entries if self.delta else ()))


class LowRank(NamedTuple):
    """What a LoRA adapter makes of a tensor W, seen as a matrix of its first dimension by all others.

    W + scale * b @ a, or W + scale * (b @ a)^T where W is stored inputs first (`transposed`: Conv1D of GPT-2, embeddings). With a
    magnitude m (DoRA, arXiv 2402.09353, Eq. 5) every output of that is brought to its length in m.

    Attributes:
        a: (r, inputs); None for a bias, to which b is added.
        b: (outputs, r); (outputs,) for a bias.
        magnitude: (outputs,), of a convolution (1, outputs, 1, ...).
    """

    a: TensorEntry | None
    b: TensorEntry
    scale: float
    transposed: bool = False
    magnitude: TensorEntry | None = None

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The adapter's tensors that it is made of."""
        return tuple(entry for entry in (self.a, self.b, self.magnitude) if entry is not None)


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


class Input(NamedTuple):
    """A file that a merge reads tensors of."""

    name: str  # in its checkpoint; an adapter's begins with adapter/
    file: WeightFile
    commit: str | None  # by which it never changes


def _pinned(ref: str, commit: str | None) -> str:
    """The reference that will mean the same tomorrow: a folder, or a Hub id at its commit."""
    return f"{ref.partition('@')[0]}@{commit}" if commit else ref


def _touched_ns(ref: str, commit: str | None, folder: Path, files: Iterable[WeightFile]) -> int:
    """When files were last changed, or their folder was put where it is (renamed, or a link to it turned)."""
    times = [max(file.mtime_ns, file.ctime_ns) for file in files]
    if commit is None:
        path = Path(expand_home(ref)).absolute()  # links are not followed
        links = [place for place in (path, *path.parents) if place.is_symlink()]
        times += [folder.stat().st_ctime_ns, *(link.lstat().st_ctime_ns for link in links)]
    return max(times)


@dataclass(frozen=True)
class Adapter:
    """An adapter that a checkpoint's tensors carry.

    Attributes:
        ref: as the recipe names it: a folder or a Hub id with its revision.
        commit: the Hub's commit, None for folders.
        folder: where its files are.
        files: its weights and its config (whose `header` is the sha256 of all of it).
        changes: how many tensors it changes.
    """

    ref: str
    commit: str | None
    folder: Path
    files: tuple[WeightFile, ...]
    changes: int = 0

    @property
    def pinned(self) -> str:
        """The reference that will mean the same tomorrow."""
        return _pinned(self.ref, self.commit)

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)


def architectures(config: dict[str, Any]) -> list[str]:
    """The classes that a config names; whatever else may stand there is none."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def tie_flag(config: dict[str, Any]) -> bool | None:
    """tie_word_embeddings, wherever it stands; None if the config leaves it to the class's default."""
    for part in (config, *(config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), dict))):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return part["tie_word_embeddings"]
    return None


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
        adapter: what changes the tensors beside what is in `files`; their entries say how.
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
    adapter: Adapter | None = None

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
    def inputs(self) -> list[Input]:
        """Every file that a merge reads tensors of, the adapter's too."""
        found = [Input(self.name_of(file.path), file, self.commit) for file in self.files]
        if self.adapter is not None:
            commit = self.adapter.commit
            found += [Input(f"adapter/{file.path.name}", file, commit) for file in self.adapter.files]
        return found

    @property
    def touched_ns(self) -> int:
        """When the files were last changed, or their folders were put where they are."""
        own = _touched_ns(self.ref, self.commit, self.folder, self.files)
        if self.adapter is None:
            return own
        return max(own, _touched_ns(self.adapter.ref, self.adapter.commit, self.adapter.folder, self.adapter.files))

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
        """The model's reference that will mean the same tomorrow: a folder, or a Hub id at its commit."""
        return _pinned(self.ref, self.commit)
