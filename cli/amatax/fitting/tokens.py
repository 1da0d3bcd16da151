"""The tokenizer that a recipe's models are asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.errors import CheckpointError

PROBE = "0123456789"  # an answer that is found again in a formatted conversation


def open_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a checkpoint's folder.

    Raises:
        CheckpointError: if transformers cannot load it.
    """
    import transformers

    refuse_own_code(checkpoint.folder, checkpoint.config, trust_remote_code)
    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.ref}: no tokenizer that transformers loads: {first_line(error)}",
            "put the tokenizer's files in the folder, or name the model that has them as the recipe's output.tokenizer",
        ) from error


def same_vocabulary(one: Any, other: Any, refs: tuple[str, str]) -> None:
    """Make sure that a model can be asked with another's tokenizer.

    Raises:
        CheckpointError: if a token has another id.
    """
    ours, theirs = one.get_vocab(), other.get_vocab()
    names, their_names = ({token: name for name, token in vocabulary.items()} for vocabulary in (ours, theirs))
    # a token that only one of them has (a pad token, say) makes no text read as another
    different = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    different += [names[token] for token in names.keys() & their_names.keys() if names[token] != their_names[token]]
    different = sorted(set(different), key=lambda name: (ours[name], name))
    if different:
        raise CheckpointError(
            f"the tokenizers of {refs[0]} and {refs[1]} differ: {len(different)} of {len(ours)} tokens, "
            f"first {different[0]!r}, which is {ours[different[0]]} and {theirs.get(different[0], 'nothing')}",
            "responses of one would be read by the other as other text: merge models that share a tokenizer",
        )


def end_tokens(tokenizer: Any, generation_config: Any) -> list[int]:
    """The tokens that end a response: the generation config's, the tokenizer's, and the one that the template closes with."""
    configured = generation_config.eos_token_id
    found = set(configured if isinstance(configured, list | tuple) else [configured])
    found |= {tokenizer.eos_token_id, _closing_token(tokenizer)}
    return sorted(token for token in found if token is not None)


def refuse_own_code(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Raises CheckpointError for a checkpoint that brings code which the user has not said to run."""
    if config.get("auto_map") and not trust_remote_code:
        raise CheckpointError(
            f"{folder}: the checkpoint brings its own code", "--trust-remote-code runs it, if you trust it"
        )


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _closing_token(tokenizer: Any) -> int | None:
    """What follows an answer in the chat template, if it is one of the added tokens; some configs do not name it as an end."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template that wants other turns tells nothing
        return None
    _, found, rest = text.rpartition(PROBE)
    ids = tokenizer(rest.lstrip(), add_special_tokens=False).input_ids if found and rest.strip() else []
    return ids[0] if ids and ids[0] in tokenizer.get_added_vocab().values() else None
