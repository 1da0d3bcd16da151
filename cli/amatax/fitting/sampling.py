"""What is sampled, and what comes back: words shared by the model at hand (generation) and a server (serving)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

from amatax.errors import AmataxError


class Watching(Protocol):
    """What a long job tells of itself: amatax.api.Watcher, which counts samples here."""

    def start(self, total: int) -> None: ...
    def advance(self, n: int) -> None: ...
    def wait(self) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; the defaults draw from the model's own distribution, as Eq. 7 of the paper does.

    Attributes:
        n: responses for each prompt.
        temperature: 1 leaves the distribution as it is, 0 takes the most likely token.
        top_p: the share of the probability that is drawn from.
        max_new_tokens: where a response is cut off.
        seed: of every draw.
        raw: prompts as they are, without the chat template.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    raw: bool = False

    def check(self) -> None:
        """Raises AmataxError for numbers that can draw nothing."""
        if self.n < 1 or self.max_new_tokens < 1:
            raise AmataxError("--n and --max-new-tokens are at least 1", "leave them out for 1 and 512")
        if not 0 <= self.temperature < float("inf"):
            raise AmataxError(f"--temperature {self.temperature:g}: not a number from 0 up", "1 is the model as it is")
        if not 0 < self.top_p <= 1:
            raise AmataxError(f"--top-p {self.top_p:g}: outside 0..1", "1 draws from the whole distribution")
        if self.temperature == 0 and self.n > 1:
            raise AmataxError(
                f"--n {self.n} at --temperature 0 gives {self.n} times the same response", "raise --temperature"
            )


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        item: prompt index * n + sample index.
        tokens: of the response, with the one that ended it; None if a server does not say.
        finish: "stop", or "length" if it was cut off.
    """

    item: int
    response: str
    tokens: int | None
    finish: str

    def line(self) -> dict[str, Any]:
        """As the journal has it."""
        return {"item": self.item, "response": self.response, "tokens": self.tokens, "finish": self.finish}


def seed_of(seed: int, item: int, n: int) -> int:
    """A seed in 31 bits (what every server takes) for one sample of one prompt, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{item // n}:{item % n}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
