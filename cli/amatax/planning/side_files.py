"""Which files are copied beside the tensors: generation config, tokenizer, chat template, processors, custom code, licence."""

from __future__ import annotations

import re
from pathlib import Path

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.folder import inside
from amatax.checkpoints.header import FETCH
from amatax.errors import CheckpointError, Fault
from amatax.recipes.schema import Recipe

LFS = b"version https://git-lfs"
TOKENIZER = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|.*\.tiktoken|.*\.spm|.*\.model|tekken\.json"
    r"|spiece\..*|sentencepiece\..*|chat_template\.(jinja|json)|additional_chat_templates/.*\.jinja|source\.spm|target\.spm"
)
MODEL = re.compile(
    r"generation_config\.json|custom_generate/.*|.*\.py"
    r"|(pre)?processor_config\.json|(image|video|audio|feature)_.*config\.json|.*preprocessor_config\.json|LICENSE.*|NOTICE.*"
)


def side_files(recipe: Recipe, checkpoints: dict[str, Checkpoint]) -> tuple[dict[str, Path], list[Fault]]:
    """Output name -> file that is copied byte for byte: the tokenizer's from one model, the rest from the other.

    A link that leads out of its checkpoint is a fault, and so is a git-lfs pointer.
    """
    output = recipe.output
    files: dict[str, Path] = {}
    faults: list[Fault] = []
    for role, pattern in ((output.tokenizer, TOKENIZER), (output.config, MODEL)):
        checkpoint = checkpoints[role]
        for name in _names(checkpoint):
            if not pattern.fullmatch(name) or name in files:
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


def _names(checkpoint: Checkpoint) -> list[str]:
    """Files of the folder and of its sub-folders, one level down."""
    top = [path.name for path in checkpoint.folder.iterdir()]
    nested = [f"{path.parent.name}/{path.name}" for path in checkpoint.folder.glob("[!.]*/*") if path.is_file()]
    return sorted(name for name in (*top, *nested) if not (checkpoint.folder / name).is_dir())
