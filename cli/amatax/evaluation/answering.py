"""Generated answers: one generation per model for all measures on the same file with the same settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xxhash

from amatax.fitting.generation import Tick, answer_batches
from amatax.fitting.records import Record
from amatax.fitting.sampling import Sample, Sampling


class Answering:
    """Answers to the prompts of one file, for every measure that wants some of them.

    Args:
        records, prompts: of the whole file, and the tokens that a model is asked with.
        sampling: one response to each; what it is hangs on its place in the file, not on what else is wanted.
        tokenizer: which made the prompts.
        batch_size: prompts at a time.
    """

    def __init__(
        self, records: list[Record], prompts: list[list[int]], sampling: Sampling, tokenizer: Any, batch_size: int
    ) -> None:
        self._records, self._prompts, self._sampling = records, prompts, sampling
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self._wanted: set[int] = set()
        self._of = b""  # the model that the answers are of
        self._answers: dict[int, Sample] = {}

    def want(self, places: Iterable[int]) -> None:
        """Answer these, too, when a model is asked."""
        self._wanted |= set(places)

    def answers(self, model: Any, mine: int, tick: Tick) -> Mapping[int, Sample]:
        """Answers by place in the file, generated unless they are there of a model with these very weights.

        Args:
            model: live, on its device.
            mine: how many the asking measure wants: what `tick` is told adds up to it.
        """
        weights = fingerprint(model)
        told = 0
        if weights != self._of or not self._wanted <= self._answers.keys():
            self._of, self._answers, done = b"", {}, 0

            def tell(ended: int) -> None:
                nonlocal done, told
                done += ended
                now = done * mine // len(self._wanted)
                tick(now - told)
                told = now

            # prompts of like length together; the longest first, so that too little memory shows at once
            order = sorted(self._wanted, key=lambda place: (-len(self._prompts[place]), place))
            batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
            for samples in answer_batches(
                model, self._tokenizer, self._records, self._prompts, batches, self._sampling, tick=tell
            ):
                self._answers |= {sample.item: sample for sample in samples}
            self._of = weights
        tick(mine - told)
        return self._answers


def fingerprint(model: torch.nn.Module) -> bytes:
    """A checksum of every weight and buffer: a model whose weights are changed in place is another model."""
    total = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            total.update(plain.view(-1).view(torch.uint8).numpy())
    return total.digest()
