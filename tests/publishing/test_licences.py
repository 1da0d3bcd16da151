"""The licence that a merge of two models is given."""

from __future__ import annotations

import pytest

from amatax.publishing.licences import LEVELS, Licence, derive

LLAMA = Licence("other", "llama-x-licence", "LICENSE")


@pytest.mark.parametrize(
    ("sft", "rlhf", "named", "said"),
    [
        (Licence("mit"), Licence("mit"), Licence("mit"), ""),
        (Licence("mit"), Licence("apache-2.0"), Licence("apache-2.0"), "most restrictive"),
        (Licence("gpl-3.0"), Licence("apache-2.0"), Licence("gpl-3.0"), "most restrictive"),
        (Licence("llama3.1"), Licence("mit"), Licence("llama3.1"), "most restrictive"),
        (Licence("cc-by-nc-4.0"), Licence("llama3.1"), Licence("cc-by-nc-4.0"), "most restrictive"),
        (Licence("llama3"), Licence("gemma"), Licence("gemma"), "add up"),
        (None, Licence("mit"), Licence("mit"), "sft: unknown, rlhf: mit"),
        (Licence("cc-by-nc-4.0"), None, Licence("cc-by-nc-4.0"), "rlhf: unknown"),
        (LLAMA, Licence("mit"), LLAMA, "have to be read (sft: other (llama-x-licence), rlhf: mit)"),
        (LLAMA, LLAMA, LLAMA, ""),
        (None, None, None, "of no input is known"),
    ],
)
def test_derived(sft: Licence | None, rlhf: Licence | None, named: Licence | None, said: str) -> None:
    for inputs in ({"sft": sft, "rlhf": rlhf}, {"rlhf": rlhf, "sft": sft}):
        licence, check = derive(inputs)
        assert licence == named
        assert bool(check) == bool(said)
    licence, check = derive({"sft": sft, "rlhf": rlhf})
    assert said in check


def test_every_licence_has_one_level() -> None:
    names = [name for level in LEVELS for name in level]
    assert len(names) == len(set(names))
