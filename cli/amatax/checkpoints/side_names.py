"""Which files beside the weights belong to a model, by their names: to be fetched, compared and copied."""

from __future__ import annotations

import re

TOKENIZER_FILES = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|normalizer\.json|.*\.tiktoken|.*\.spm"
    r"|.*\.model|tekken\.json|spiece\..*|sentencepiece\..*|chat_template\.(jinja|json)|additional_chat_templates/.*\.jinja"
    r"|tokenization_.*\.py"
)
MODEL_FILES = re.compile(
    r"generation_config\.json|custom_generate/.*|.*\.py"
    r"|(pre)?processor_config\.json|(image|video|audio|feature)_.*config\.json|.*preprocessor_config\.json"
    r"|(?i:licen[cs]e|notice|copying|use_policy|third_party)[^/]*"
)
EVERY_JSON = re.compile(r"[^/]+\.json")  # config.json and what tells that a checkpoint is quantised


def is_side_file(name: str) -> bool:
    """Whether a merge may read a file of a repository that holds no weights."""
    return any(p.fullmatch(name) for p in (TOKENIZER_FILES, MODEL_FILES, EVERY_JSON)) and name.count("/") <= 1
