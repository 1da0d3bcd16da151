"""A checkpoint as transformers has it: whole, with nothing random in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import CheckpointError
from amatax.fitting.adapted import adapted_tensors
from amatax.fitting.memory import out_of_memory
from amatax.fitting.tokens import first_line, refuse_own_code


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | str = "auto",
    reward: bool = False,
    trust_remote_code: bool = False,
    tensors: dict[str, torch.Tensor] | None = None,
    folder: Path | None = None,
) -> Any:
    """A model on the CPU, in evaluation mode.

    Args:
        checkpoint: the folder, with the adapter that it carries.
        dtype: of the loaded weights; that of the checkpoint by default.
        reward: a sequence-classification model; else a causal language model.
        tensors: by disk name; in place of the checkpoint's own.
        folder: whose config is taken, with `tensors`; the checkpoint's by default.

    Raises:
        CheckpointError: if it cannot be loaded, misses weights, or is no such model.
    """
    wanted = "a sequence-classification model with one label" if reward else "a causal language model"
    if reward:
        model_class: Any = transformers.AutoModelForSequenceClassification
    else:
        model_class = getattr(transformers, checkpoint.loaded_by, transformers.AutoModelForCausalLM)
    refuse_own_code(checkpoint.folder, checkpoint.config, trust_remote_code)
    source: Any = checkpoint.folder
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    try:
        if tensors is None and checkpoint.adapter is not None:
            tensors = adapted_tensors(checkpoint)
        if tensors is not None:
            described = folder or checkpoint.folder
            source, options = None, options | {"state_dict": tensors}
            model_class, options["config"] = _class_and_config(model_class, described, trust_remote_code)
        else:
            options["trust_remote_code"] = trust_remote_code
        model, info = model_class.from_pretrained(source, **options)
        if tensors is not None and (described / "generation_config.json").exists():
            model.generation_config = transformers.GenerationConfig.from_pretrained(described)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise CheckpointError(
            f"{checkpoint.ref}: transformers cannot load it: {first_line(error)}", f"is it {wanted}?"
        ) from error
    if missing := sorted(info.get("missing_keys") or []):
        raise CheckpointError(
            f"{checkpoint.ref}: {len(missing)} weights are missing, first {missing[0]!r}",
            f"transformers would fill them with random numbers: is it {wanted}, saved whole?",
        )
    if not reward and (not model.can_generate() or model.config.is_encoder_decoder):
        raise CheckpointError(
            f"{checkpoint.ref}: {type(model).__name__} is no causal language model",
            "responses are sampled from, and fitted on, models like LlamaForCausalLM",
        )
    return model.eval()


def _class_and_config(model_class: Any, folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """The class that an Auto class stands for, and the folder's config: what loads tensors that are in no folder."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not hasattr(model_class, "from_config"):
        return model_class, config
    with torch.device("meta"):
        return type(model_class.from_config(config, trust_remote_code=trust_remote_code)), config
