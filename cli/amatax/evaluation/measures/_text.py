"""Texts as they are compared."""

from __future__ import annotations

import re
import string

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (SQuAD's normalisation, arXiv 1606.05250)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def normalised(text: str, how: str) -> str:
    """`none`: without white space around it. `case`: also in lower case. `squad`: see `squad`."""
    if how == "squad":
        return squad(text)
    return text.strip().casefold() if how == "case" else text.strip()
