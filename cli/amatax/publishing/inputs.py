"""What the inputs' own model cards say: licence, languages, datasets; and whether the Hub lets everybody have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from amatax.checkpoints.hub_client import patiently
from amatax.checkpoints.hub_errors import hub_error
from amatax.publishing.licences import Licence, derive
from amatax.recipes.schema import expand_home, is_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi


WORD = re.compile(r"[\w.+-]{1,80}")
LINK = re.compile(r"https?://[\w./%?=&#~:+-]{1,300}|[\w-]+(\.[\w-]+)*")
DATASET = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class InputFacts(NamedTuple):
    """Of one input.

    Attributes:
        licence: None if its card names none.
        languages, datasets: as its card lists them.
        restricted: "gated" or "private"; "" if everybody can have it, or if it is a local folder.
    """

    licence: Licence | None
    languages: list[str]
    datasets: list[str]
    restricted: str


def input_facts(models: Mapping[str, str], api: HfApi) -> dict[str, InputFacts]:
    """By role; a local folder tells what its README.md does.

    Raises:
        HubError: if the Hub cannot be asked.
    """
    return {role: _of_folder(ref) if is_folder(ref) else _of_repository(ref, api) for role, ref in models.items()}


def card_facts(facts: Mapping[str, InputFacts]) -> tuple[dict[str, object], list[str]]:
    """What a card says of them: (keys of its front matter, sections of its text)."""
    licence, check = derive({role: fact.licence for role, fact in facts.items()})
    front: dict[str, object] = licence.front() if licence is not None else {}
    for key, values in (
        ("language", [language for fact in facts.values() for language in fact.languages]),
        ("datasets", [dataset for fact in facts.values() for dataset in fact.datasets]),
    ):
        if values:
            front[key] = list(dict.fromkeys(values))
    return front, [f"**Licence, check this:** {check}."] if check else []


def _of_repository(ref: str, api: HfApi) -> InputFacts:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    repo, _, commit = ref.partition("@")
    try:
        info = patiently(lambda: api.model_info(repo, revision=commit or None))
    except GatedRepoError:
        return InputFacts(None, [], [], "gated")
    except RepositoryNotFoundError:
        return InputFacts(None, [], [], "private")  # or gone: nobody else can have it either
    except (TypeError, AttributeError, KeyError):  # a card that huggingface_hub cannot read says nothing
        info = patiently(lambda: api.model_info(repo, revision=commit or None, expand=["private", "gated"]))
        return InputFacts(None, [], [], "private" if info.private else "gated" if info.gated else "")
    except Exception as error:
        raise hub_error(error, repo, commit) from error
    restricted = "private" if info.private else "gated" if info.gated else ""
    return _of_card(info.card_data.to_dict() if info.card_data is not None else {}, restricted)


def _of_folder(ref: str) -> InputFacts:
    from huggingface_hub import metadata_load

    try:
        front = metadata_load(Path(expand_home(ref)) / "README.md")
    except (OSError, ValueError, yaml.YAMLError):  # none, or not a card
        front = None
    return _of_card(front if isinstance(front, dict) else {}, "")


def _of_card(front: Mapping[str, Any], restricted: str) -> InputFacts:
    """What can be believed of a card: it was written by somebody else, and goes into ours."""
    named = [word.lower() for word in _words(front.get("license"), WORD)]
    name, link = front.get("license_name"), front.get("license_link")
    known = [
        Licence(
            word,
            name if word == "other" and isinstance(name, str) and WORD.fullmatch(name) else "",
            link if word == "other" and isinstance(link, str) and LINK.fullmatch(link) else "",
        )
        for word in named
        if word != "unknown"
    ]
    known = [licence for licence in known if licence.license != "other" or licence.name]  # else nobody knows which
    licence, _ = derive({str(i): licence for i, licence in enumerate(known)})
    languages = _words(front.get("language"), WORD)
    return InputFacts(licence, languages, _words(front.get("datasets"), DATASET), restricted)


def _words(value: Any, pattern: re.Pattern[str]) -> list[str]:
    """A card's list of words, which may be one word; `no` is Norwegian, whatever YAML thinks."""
    items = value if isinstance(value, list) else [value]
    words = ["no" if item is False else item for item in items]
    return [word for word in words if isinstance(word, str) and pattern.fullmatch(word)]
