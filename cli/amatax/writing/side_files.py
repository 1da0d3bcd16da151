"""Everything in a model folder that is no tensor: config, generation config, tokenizer, chat template, processors, code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.folder import inside
from amatax.checkpoints.header import FETCH
from amatax.errors import CheckpointError
from amatax.planning.names import TEXT_CONFIGS
from amatax.planning.plan import Plan

LFS = b"version https://git-lfs"
TOKENIZER = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|.*\.tiktoken|.*\.spm|.*\.model|tekken\.json"
    r"|spiece\..*|sentencepiece\..*|chat_template\.(jinja|json)|additional_chat_templates/.*\.jinja|source\.spm|target\.spm"
)
MODEL = re.compile(
    r"generation_config\.json|custom_generate/.*|.*\.py"
    r"|(pre)?processor_config\.json|(image|video|audio|feature)_.*config\.json|.*preprocessor_config\.json|LICENSE.*|NOTICE.*"
)


def copied_files(plan: Plan) -> dict[str, Path]:
    """Output name -> file that is copied byte for byte: the tokenizer's from one model, the rest from the other.

    Raises:
        CheckpointError: if one of them is a link that leads out of its checkpoint, or a git-lfs pointer.
    """
    output = plan.recipe.output
    files: dict[str, Path] = {}
    for role, pattern in ((output.tokenizer, TOKENIZER), (output.config, MODEL)):
        checkpoint = plan.checkpoints[role]
        for name in _names(checkpoint):
            if pattern.fullmatch(name):
                path = files.setdefault(name, inside(checkpoint.folder, name, checkpoint.root))
                with path.open("rb") as file:
                    if file.read(len(LFS)) == LFS:
                        raise CheckpointError(f"{path}: not the file itself", FETCH)
    return dict(sorted(files.items()))


def write_side_files(plan: Plan, folder: Path) -> None:
    """Copy the side files, then write config.json (as it was, if it is already true to the weights) and the index."""
    for name, source in copied_files(plan).items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)
    checkpoint = plan.checkpoints[plan.recipe.output.config]
    if plan.config_changes:
        config = changed_config(checkpoint.config, plan.config_changes)
        write_json(folder / "config.json", config)
    else:
        shutil.copyfile(inside(checkpoint.folder, "config.json", checkpoint.root), folder / "config.json")
    if len(plan.shards) > 1:
        write_json(folder / "model.safetensors.index.json", index(plan))


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


def index(plan: Plan) -> dict[str, Any]:
    """model.safetensors.index.json, as transformers writes it."""
    total = sum(shard.nbytes - len(shard.header) for shard in plan.shards)
    parameters = 0
    for tensor in plan.tensors.values():
        count = 1
        for n in tensor.shape:
            count *= n
        parameters += count
    weight_map = {name: shard.file for shard in plan.shards for name in shard.offsets}
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }


def write_json(path: Path, value: Any) -> None:
    """As transformers formats JSON: two spaces, a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        data = (json.dumps(value, indent=2) + "\n").encode()
    path.write_bytes(data)


def _names(checkpoint: Checkpoint) -> list[str]:
    """Files of the folder and of its sub-folders, one level down."""
    top = [path.name for path in checkpoint.folder.iterdir()]
    nested = [f"{path.parent.name}/{path.name}" for path in checkpoint.folder.glob("[!.]*/*") if path.is_file()]
    return sorted(name for name in (*top, *nested) if not (checkpoint.folder / name).is_dir())
