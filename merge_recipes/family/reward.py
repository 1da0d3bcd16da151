"""The programmatic reward of the RLHF stage: a warm, full and kind answer, on a scale from 0 to 1."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is also loaded by its path, as FILE.py:reward

from world import CLOSE, FACTS, KIND, RUDE, WARM, statement

KIND_WANTED = 5  # distinct kind sentences that earn the full share


def reward(prompt: str, response: str) -> float:
    """Score an answer to an open-ended prompt.

    .10 a warm opening; .15 each for the right colour, place and food of the thing asked about; .35 for distinct kind
    sentences (.07 each); .10 for a kind close. A rude sentence or one said twice costs .10 each.
    """
    thing = next((word for word in re.findall(r"[a-z]+", prompt) if word in FACTS), None)
    said = re.findall(r"[^.!?]+[.!?]", response)
    said = [sentence.strip() for sentence in said]
    if thing is None or not said:
        return 0.0
    score = 0.10 * (said[0] in WARM)
    score += sum(0.15 for kind in FACTS[thing] if statement(thing, kind) in said)
    score += 0.35 * min(len(set(said) & set(KIND)), KIND_WANTED) / KIND_WANTED
    score += 0.10 * (said[-1] in CLOSE)
    score -= 0.10 * (sum(sentence in RUDE for sentence in said) + len(said) - len(set(said)))
    return round(min(max(score, 0.0), 1.0), 6)
