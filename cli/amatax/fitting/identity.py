"""What a distillation is, so that an interrupted run continues, a finished one is recognised, and another is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Adapter, Checkpoint
from amatax.checkpoints.side_names import TOKENIZER_FILES
from amatax.errors import OutputError
from amatax.fitting.journal import Journal, unfinished
from amatax.fitting.sampling import Sampling

FORMAT = 1
SAMPLING_FILES = ("config.json", "generation_config.json")


def job_head(
    prompts: Path, records: int, sampling: Sampling, source: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the responses depend on; an interrupted run continues only under the same head.

    Args:
        source: which model answers, and its tokenizer.
        run: what changes no more than rounding (each sample has random numbers of its own): recorded, and free to change.
    """
    return {
        "distill": FORMAT,
        "prompts": {"sha256": hashlib.sha256(prompts.read_bytes()).hexdigest(), "records": records},
        "sampling": sampling.__dict__,
        **source,
        "run": dict(run),
    }


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells that a checkpoint is still the same one."""
    adapter = {"adapter": _known(checkpoint.adapter)} if checkpoint.adapter is not None else {}
    sides = {} if checkpoint.commit else {"sides": _side_hash(checkpoint.folder)}
    return {**_known(checkpoint), **sides, **adapter}


def _known(source: Checkpoint | Adapter) -> dict[str, Any]:
    """A commit, or files with their times."""
    if source.commit:
        return {"ref": source.ref.partition("@")[0], "commit": source.commit}
    return {"ref": source.ref, "files": [[f.path.name, f.size, f.header, f.mtime_ns] for f in source.files]}


def check_output(output: Path, prompts: Path) -> None:
    """Raises OutputError for an output that can be none."""
    if output.is_dir():
        raise OutputError(f"{output}: a folder", f"name a file, like {output / 'proxy.jsonl'}")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output}: no plain file", "name a file: a run that is interrupted continues there")
    if output.resolve() == prompts.resolve():
        raise OutputError(f"{output}: the prompts themselves", "write to another file")


def same_job(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether two heads give the same responses, up to rounding."""
    return old is not None and {**old, "run": 0} == {**new, "run": 0}


def finished_already(
    output: Path, journal: Journal, head: dict[str, Any], ending: dict[str, Any], *, overwrite: bool
) -> bool:
    """Whether this very job is finished.

    Raises:
        OutputError: if something else stands there, or unfinished work of another job, and `overwrite` is not set.
    """
    same = same_job(journal.head, head)
    before = journal.ending or {}
    if output.exists():
        whole = before.get("sha256") == hashlib.sha256(output.read_bytes()).hexdigest()
        selected_so = {key: value for key, value in before.items() if key != "sha256"} == ending
        if same and whole and selected_so:
            return True
        if not overwrite:
            if not same or not before:
                another = (
                    f"made by another run ({_differences(journal.head, head)})" if journal.head else "there already"
                )
                raise OutputError(f"{output}: {another}", "choose another file, or replace it with --overwrite")
            what = "selected otherwise" if whole else "changed since it was distilled"
            raise OutputError(f"{output}: {what}", "--overwrite writes it again, from the same samples")
    if journal.foreign and not overwrite:
        raise OutputError(
            f"{unfinished(output)}, where amatax works, holds something else", "move it away, or --overwrite it"
        )
    if not same and journal.interrupted and not overwrite:
        raise OutputError(
            f"{unfinished(output)}: unfinished work of another run ({_differences(journal.head, head)})",
            "finish that one, choose another output, or start over with --overwrite",
        )
    return False


def _side_hash(folder: Path) -> str:
    """sha256 over the files that sampling depends on beside the weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and (TOKENIZER_FILES.fullmatch(path.name) or path.name in SAMPLING_FILES):
            data = path.read_bytes()
            digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    """The keys in which two heads differ."""
    before, after = _flat({**(old or {}), "run": 0}), _flat({**new, "run": 0})
    keys = [key for key in {**after, **before} if before.get(key) != after.get(key)]
    shown = [
        f"{key} {before[key]} -> {after[key]}" if key in before and key in after and _short(before[key]) else key
        for key in keys
    ]
    return "differs in " + ", ".join(shown[:4])


def _short(value: Any) -> bool:
    return len(str(value)) <= 24


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """{"sampling": {"seed": 0}} -> {"seed": 0}."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= (
            {k if key == "sampling" else f"{key}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return flat
