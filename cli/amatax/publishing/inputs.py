"""What the inputs' own model cards say: licence, languages, datasets; and whether the Hub lets everybody have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amatax.checkpoints.hub_errors import hub_error
from amatax.publishing.licences import Licence, derive
from amatax.recipes.schema import expand_home, is_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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
        info = api.model_info(repo, revision=commit or None)
    except GatedRepoError:
        return InputFacts(None, [], [], "gated")
    except RepositoryNotFoundError:
        return InputFacts(None, [], [], "private")  # or gone: nobody else can have it either
    except Exception as error:
        raise hub_error(error, repo, commit) from error
    restricted = "private" if info.private else "gated" if info.gated else ""
    return _of_card(info.card_data.to_dict() if info.card_data is not None else {}, restricted)


def _of_folder(ref: str) -> InputFacts:
    from huggingface_hub import metadata_load

    try:
        front = metadata_load(Path(expand_home(ref)) / "README.md")
    except (OSError, ValueError):  # none, or not a card
        front = None
    return _of_card(front if isinstance(front, dict) else {}, "")


def _of_card(front: Mapping[str, Any], restricted: str) -> InputFacts:
    licence = front.get("license")
    own = Licence(str(licence), *(str(front.get(key) or "") for key in ("license_name", "license_link")))
    return InputFacts(own if licence else None, _list(front.get("language")), _list(front.get("datasets")), restricted)


def _list(value: Any) -> list[str]:
    """A card's list of words, which may be one word."""
    return [value] if isinstance(value, str) else [str(v) for v in value] if isinstance(value, list) else []
