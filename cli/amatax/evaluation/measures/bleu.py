"""Corpus BLEU of generated answers, 0 to 100, by sacrebleu (arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from amatax.evaluation.measures import Answer, Flag

NEEDS = ("answer", "references")
HIGHER = True
EXTRA = ("sacrebleu",)
ORDER = 4


def bleu(
    seen: Answer, *, tokenize: Literal["13a", "char", "intl", "none", "zh"] = "13a", lowercase: Flag = False
) -> tuple[float, ...]:
    """(matching n-grams of 1 to 4 words, all of them of the answer, its words, those of the reference nearest in length)."""
    return counts(seen.response.strip(), seen.references, tokenize, lowercase)


def counts(text: str, references: Sequence[str], tokenize: str = "13a", lowercase: bool = False) -> tuple[float, ...]:
    """Those numbers of a text as it stands."""
    found = _scorer(tokenize, lowercase).sentence_score(text, list(references))
    return *map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)


def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU of the summed counts, with sacrebleu's exponential smoothing of orders that match nowhere."""
    from sacrebleu.metrics.bleu import BLEU

    rows = np.atleast_2d(sums).reshape(-1, 2 * ORDER + 2)
    scores = [
        BLEU.compute_bleu(
            list(row[:ORDER]), list(row[ORDER : 2 * ORDER]), int(row[-2]), int(row[-1]), smooth_method="exp"
        ).score
        for row in rows
    ]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])


@cache
def _scorer(tokenize: str, lowercase: bool) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)  # of one sentence; counts are the same
