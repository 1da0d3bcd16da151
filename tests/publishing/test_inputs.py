"""What is believed of the inputs' cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amatax.publishing.inputs import card_facts, input_facts
from amatax.publishing.licences import Licence


@pytest.mark.parametrize(
    ("front", "licence", "languages", "datasets"),
    [
        ("license: mit", Licence("mit"), [], []),
        ("license: MIT", Licence("mit"), [], []),
        ("license: [mit, gpl-3.0]", Licence("gpl-3.0"), [], []),
        ("license: 3", None, [], []),
        ("license: unknown", None, [], []),
        ("license: other", None, [], []),
        ("{license: other, license_name: acme, license_link: LICENSE}", Licence("other", "acme", "LICENSE"), [], []),
        ("{license: other, license_name: 'a <b>\\nc'}", None, [], []),
        ("{license: mit, license_link: 'file:///home/alice/L'}", Licence("mit"), [], []),
        ("language: [en, no, 3, null]", None, ["en", "no"], []),
        ("datasets: [null, {a: b}, a/b, /home/alice/d.jsonl, '../x', c]", None, [], ["a/b", "c"]),
        ("license: [mit", None, [], []),
        ("- a list", None, [], []),
        ("", None, [], []),
    ],
)
def test_believed(
    tmp_path: Path, front: str, licence: Licence | None, languages: list[str], datasets: list[str]
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    api: Any = None  # a folder asks nobody
    fact = input_facts({"sft": str(tmp_path)}, api)["sft"]
    assert (fact.licence, fact.languages, fact.datasets, fact.restricted) == (licence, languages, datasets, "")


def test_two_that_name_no_licence(tmp_path: Path) -> None:
    for role in ("sft", "rlhf"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "README.md").write_text("---\nlicense: other\n---\n")
    api: Any = None
    front, sections = card_facts(input_facts({r: str(tmp_path / r) for r in ("sft", "rlhf")}, api))
    assert front == {}
    assert "check this" in sections[0]
