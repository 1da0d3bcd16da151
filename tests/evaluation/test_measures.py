"""Each measure's sums and value against numbers worked out by hand, and against its usual library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from amatax.evaluation.measures import Answer, Choices, Likelihood, bind, kinds, needs, options_model, summary
from amatax.evaluation.measures._aggregations import AGGREGATIONS
from amatax.evaluation.measures.lm_eval import Scored


def value(kind: str, seen: list[Any], **options: Any) -> float:
    """The measure over samples, as a recipe with these options has it."""
    score, of = bind(kind, options_model(kind).model_validate(options).model_dump())
    sums = np.array([score(sample) for sample in seen], dtype=np.float64)
    return float(of(sums.sum(0)))


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [Answer(given, 1, (right,)) for given, right in pairs]


def test_every_kind_is_found_and_says_what_it_is() -> None:
    known = {"nll", "exact_match", "contains", "f1", "bleu", "multiple_choice", "reward", "kl", "length", "lm_eval"}
    assert known <= set(kinds())
    assert all(summary(kind) and needs(kind) for kind in kinds())


@pytest.mark.parametrize("kind", ["nll", "kl"])
def test_likelihoods_are_weighed_by_tokens(kind: str) -> None:
    assert value(kind, [Likelihood(3.0, 1), Likelihood(1.0, 3)]) == 1.0  # 4 nats of 4 tokens; the mean of means is 5/3


@pytest.mark.parametrize(
    ("given", "right", "none", "case", "squad"),
    [
        ("harbour\n", "harbour", 1, 1, 1),
        ("Harbour", "harbour", 0, 1, 1),
        ("The harbour.", "harbour", 0, 0, 1),
        ("theharbour", "harbour", 0, 0, 0),
        ("", "harbour", 0, 0, 0),
    ],
)
def test_exact_match(given: str, right: str, none: int, case: int, squad: int) -> None:
    for normalise, expected in (("none", none), ("case", case), ("squad", squad)):
        assert value("exact_match", answers((given, right)), normalise=normalise) == expected


def test_one_of_several_references_is_enough() -> None:
    seen = [Answer("rice", 1, ("corn", "rice")), Answer("milk", 1, ("corn", "rice"))]
    assert value("exact_match", seen) == 0.5


@pytest.mark.parametrize(
    ("given", "right", "none", "case"),
    [("It is in the harbour.", "harbour", 1, 1), ("The Harbour", "harbour", 0, 1), ("har bour", "harbour", 0, 0)],
)
def test_contains(given: str, right: str, none: int, case: int) -> None:
    assert value("contains", answers((given, right))) == none
    assert value("contains", answers((given, right)), normalise="case") == case


def test_a_reference_of_which_nothing_is_left_stands_nowhere() -> None:
    assert value("contains", answers(("anything", "the")), normalise="squad") == 0


@pytest.mark.parametrize(
    ("given", "right", "expected"),
    [
        ("The cat sat on the mat", "a cat on a mat!", 2 * 3 / (4 + 3)),  # cat sat on mat against cat on mat
        ("red red", "red", 2 * 1 / 3),  # a word counts as often as both have it
        ("blue", "red", 0.0),
        ("the", "a", 1.0),  # both are nothing: SQuAD 2.0
        ("", "red", 0.0),
        ("It's 5 o'clock", "its 5 oclock", 1.0),  # punctuation is taken out, not made a space
    ],
)
def test_f1_by_hand(given: str, right: str, expected: float) -> None:
    assert math.isclose(value("f1", answers((given, right))), expected)


def test_f1_takes_the_nearest_reference() -> None:
    assert value("f1", [Answer("red wolf", 2, ("blue", "a red fox", "wolf"))]) == 2 / 3


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, 0 of 2 fours: smoothed to 1/2 of a half; as long as its reference
    seen = answers(("the cat sat on mats", "the cat sat in mats"))
    expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * (1 / 2) / 2) ** 0.25
    assert math.isclose(value("bleu", seen), expected)


def test_bleu_punishes_short_answers() -> None:
    seen = answers(("a b c d", "a b c d e f"))
    assert math.isclose(value("bleu", seen), 100 * math.exp(1 - 6 / 4))


SENTENCES = [
    ("The house is big, and red.", ("The house is large and red.", "Big and red is the house.")),
    ("He goes to the market tomorrow", ("Tomorrow he goes to market.", "He will go to the market tomorrow.")),
    ("nothing here fits", ("An entirely different sentence.", "And yet another one!")),
    ("", ("Something.", "Anything at all.")),
]


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}, {"tokenize": "intl"}])
def test_bleu_is_sacrebleus(options: dict[str, Any]) -> None:
    from sacrebleu.metrics.bleu import BLEU

    seen = [Answer(given, 1, references) for given, references in SENTENCES]
    streams = [list(stream) for stream in zip(*(references for _, references in SENTENCES), strict=True)]
    expected = BLEU(**options).corpus_score([given for given, _ in SENTENCES], streams).score
    assert value("bleu", seen, **options) == expected > 0


def test_the_value_takes_sums_of_many_at_once() -> None:
    score, of = bind("bleu", options_model("bleu")().model_dump())
    sums = np.array([score(Answer(given, 1, references)) for given, references in SENTENCES])
    twice = np.stack([sums.sum(0), sums[:2].sum(0)])[None]
    assert of(twice).shape == (1, 2)
    assert of(twice)[0].tolist() == [float(of(row)) for row in twice[0]]


def test_multiple_choice() -> None:
    # 3 nats, 2 tokens, 2 characters; 2 nats, 1 token, 10 characters; 4 nats, 8 tokens, 4 characters
    seen = [
        Choices((Likelihood(3, 2), Likelihood(2, 1), Likelihood(4, 8)), ("ab", "a" * 10, "abcd"), right)
        for right in (0, 1, 2)
    ]
    score, _ = bind("multiple_choice", {"per": "choice"})
    assert [score(sample)[0] for sample in seen] == [0, 1, 0]
    score, _ = bind("multiple_choice", {"per": "token"})
    assert [score(sample)[0] for sample in seen] == [0, 0, 1]
    score, _ = bind("multiple_choice", {"per": "character"})
    assert [score(sample)[0] for sample in seen] == [0, 1, 0]
    assert value("multiple_choice", seen) == 1 / 3


def test_of_equal_choices_the_first_is_taken() -> None:
    tie = Choices((Likelihood(2, 1), Likelihood(2, 1)), ("a", "b"), 0)
    assert value("multiple_choice", [tie]) == 1
    assert value("multiple_choice", [tie._replace(answer=1)]) == 0


def test_reward_and_length() -> None:
    seen = [Answer("one two", 5, reward=0.25), Answer("", 1, reward=-1.0)]
    assert value("reward", seen) == -0.375
    assert value("length", seen) == 3
    assert value("length", seen, unit="word") == 1
    assert value("length", seen, unit="character") == 3.5


@pytest.mark.parametrize(
    ("aggregation", "items", "expected"),
    [
        ("mean", [1, 0.5, None, True], 2.5 / 3),  # a metric may say nothing of a document
        ("nanmean", [1.0, math.nan, 0.0], 0.5),
        ("perplexity", [-math.log(2), -math.log(8)], 4.0),  # exp of the mean: sqrt(2 * 8)
        ("weighted_perplexity", [(-math.log(2), 1), (-math.log(32), 2)], 4.0),  # 64 ** (1 / 3)
        ("bits_per_byte", [(-math.log(2), 1), (-3 * math.log(2), 3)], 1.0),
    ],
)
def test_numbers_of_the_harness_as_functions_of_sums(aggregation: str, items: list[Any], expected: float) -> None:
    score, _ = bind("lm_eval", options_model("lm_eval").model_validate({"task": "any"}).model_dump())
    sums = np.array([score(Scored(item, aggregation)) for item in items])
    assert float(AGGREGATIONS[aggregation].value(sums.sum(0))) == pytest.approx(expected)


def test_the_harness_bleu_is_sacrebleus_of_texts_as_they_stand() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = [(" the cat sat on the mat", " the cat sat on a mat"), ("one two three four five", "one two three four")]
    sums = np.array([AGGREGATIONS["bleu"].sums(pair) for pair in pairs])
    theirs = sacrebleu.corpus_bleu([given for _, given in pairs], [[right for right, _ in pairs]]).score
    assert float(AGGREGATIONS["bleu"].value(sums.sum(0))) == pytest.approx(theirs, rel=1e-12)
    several = AGGREGATIONS["bleu"].sums((["a b c d", "a b c d e"], ["a b c d e"]))
    assert several == (5.0, 4.0, 3.0, 2.0, 5.0, 4.0, 3.0, 2.0, 5.0, 5.0)
