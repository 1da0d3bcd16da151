"""Which responses make the proxy set (the best, then a draw from them), and what is to be said of all of them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from amatax.fitting.records import Record
from amatax.fitting.sampling import Sample


@dataclass(frozen=True)
class Selection:
    """Which responses are kept: the `top` highest rewards, then `draw` of them."""

    top: int | None = None
    draw: int | None = None


@dataclass(frozen=True)
class Spread:
    """Mean and quartiles (the median is one of them)."""

    mean: float
    lower: float
    median: float
    upper: float
    max: float


@dataclass(frozen=True)
class Summary:
    """What came of a distillation; counts are of responses.

    Attributes:
        prompts: records asked.
        responses: sampled, empty ones included.
        selected: in the output.
        truncated: cut off before they ended.
        empty: left out of the output.
        duplicates: repeat an earlier response to the same conversation; they stay.
        tokens: lengths, where they are known.
        rewards: of all that were scored.
        selected_rewards: of those in the output.
    """

    prompts: int
    responses: int
    selected: int
    truncated: int
    empty: int
    duplicates: int
    tokens: Spread | None
    rewards: Spread | None
    selected_rewards: Spread | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def select(samples: Mapping[int, Sample], rewards: Mapping[int, float], selection: Selection, seed: int) -> list[int]:
    """The items of the output, in prompt order.

    Equal rewards go by item; empty responses are never taken. The draw takes the lowest of seeded hashes, so that it hangs
    neither on Python's version nor on how many there are.
    """
    items = [item for item, sample in samples.items() if sample.response.strip()]
    if selection.top is not None:
        items = sorted(items, key=lambda item: (-rewards[item], item))[: selection.top]
    if selection.draw is not None:
        items = sorted(items, key=lambda item: hashlib.blake2b(f"draw:{seed}:{item}".encode()).digest())[
            : selection.draw
        ]
    return sorted(items)


def summarise(
    records: Sequence[Record], n: int, samples: Mapping[int, Sample], rewards: Mapping[int, float], selected: list[int]
) -> Summary:
    """Count and measure."""
    seen = {
        (json.dumps(records[item // n].messages), sample.response)
        for item, sample in samples.items()
        if sample.response.strip()
    }
    empty = sum(not sample.response.strip() for sample in samples.values())
    return Summary(
        prompts=len(records),
        responses=len(samples),
        selected=len(selected),
        truncated=sum(sample.finish == "length" for sample in samples.values()),
        empty=empty,
        duplicates=len(samples) - empty - len(seen),
        tokens=spread([sample.tokens for sample in samples.values() if sample.tokens is not None]),
        rewards=spread(list(rewards.values())),
        selected_rewards=spread([rewards[item] for item in selected if item in rewards]),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """None without values."""
    if not values:
        return None
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(statistics.fmean(values), quartiles[0], quartiles[1], quartiles[2], max(values))


def output_record(record: Record, sample: Sample, reward: float | None) -> dict[str, Any]:
    """The input's keys with the new response; an older response to it, and what was said of that, goes."""
    stale = ("response", "reward", "finish")
    data = {key: value for key, value in record.data.items() if key not in stale}
    if "messages" in data:
        data["messages"] = (
            record.messages
        )  # without a final assistant turn, or that would be read as part of the prompt
    data["response"] = sample.response
    if reward is not None:
        data["reward"] = reward
    return {**data, "finish": sample.finish}
