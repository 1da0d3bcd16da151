"""A checkpoint as transformers has it: whole, with nothing random in it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import CheckpointError
from amatax.fitting.memory import out_of_memory
from amatax.fitting.tokens import first_line, refuse_own_code


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | str = "auto",
    reward: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """A model on the CPU, in evaluation mode.

    Args:
        checkpoint: the folder.
        dtype: of the loaded weights; that of the checkpoint by default.
        reward: a sequence-classification model; else a causal language model.

    Raises:
        CheckpointError: if it cannot be loaded, misses weights, or is no such model.
    """
    wanted = "a sequence-classification model with one label" if reward else "a causal language model"
    if reward:
        model_class: Any = transformers.AutoModelForSequenceClassification
    else:
        model_class = getattr(transformers, checkpoint.loaded_by, transformers.AutoModelForCausalLM)
    refuse_own_code(checkpoint.folder, checkpoint.config, trust_remote_code)
    try:
        model, info = model_class.from_pretrained(
            checkpoint.folder, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code
        )
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
