"""Which files are copied beside the tensors (generation config, tokenizer, chat template, processors, custom code, licence), and
the config with what the weights change in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import TEXT_CONFIGS, Checkpoint
from amatax.checkpoints.folder import inside
from amatax.checkpoints.header import FETCH
from amatax.checkpoints.side_names import MODEL_FILES, TOKENIZER_FILES
from amatax.errors import CheckpointError, Fault
from amatax.recipes.schema import Recipe

LFS = b"version https://git-lfs"


def side_files(recipe: Recipe, checkpoints: dict[str, Checkpoint]) -> tuple[dict[str, Path], list[Fault]]:
    """Output name -> file that is copied byte for byte: the tokenizer's from one model, the rest from the other.

    A link that leads out of its checkpoint is a fault, and so is a git-lfs pointer.
    """
    output = recipe.output
    files: dict[str, Path] = {}
    faults: list[Fault] = []
    for role, pattern in ((output.tokenizer, TOKENIZER_FILES), (output.config, MODEL_FILES)):
        checkpoint = checkpoints[role]
        for name in checkpoint.names:
            if not pattern.fullmatch(name) or name in files:
                continue
            if checkpoint.remote is not None:  # the Hub's files are in the repository, and no pointers
                files[name] = checkpoint.folder / name
                continue
            try:
                files[name] = inside(checkpoint.folder, name, checkpoint.root)
                with files[name].open("rb") as file:
                    if file.read(len(LFS)) == LFS:
                        raise CheckpointError(f"{files[name]}: not the file itself", FETCH)
            except CheckpointError as error:
                faults.append(Fault(error.message, hint=error.hint))
            except OSError as error:
                faults.append(Fault(f"{checkpoint.folder / name}: {error.strerror}", hint="check its permissions"))
    return dict(sorted(files.items())), faults


def changed_config(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The config with each change made wherever its key stands: at the top (dtype also as torch_dtype), and in sub-configs."""
    result = dict(config)
    for key, value in changes.items():
        names = ("dtype", "torch_dtype") if key == "dtype" else (key,)
        found = [name for name in names if name in result] or [key]
        result |= dict.fromkeys(found, value)
        for part in TEXT_CONFIGS if key == "tie_word_embeddings" else list(result):
            if isinstance(result.get(part), dict):
                result[part] = {k: value if k in names else v for k, v in result[part].items()}
    return result
