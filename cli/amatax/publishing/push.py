"""A finished folder to the Hub, by huggingface_hub's own uploader; looked at again when it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from amatax import __version__
from amatax.checkpoints.downloads import digest_of
from amatax.checkpoints.hub_client import hub_api, patiently
from amatax.checkpoints.hub_errors import MAY_WRITE, hub_error, unreachable
from amatax.checkpoints.side_names import is_side_file
from amatax.errors import AmataxError, HubError, OutputError
from amatax.planning.destination import RECIPE
from amatax.publishing.finished import finished_files
from amatax.publishing.inputs import InputFacts, card_facts, input_facts
from amatax.publishing.staging import merged_blocks, staged
from amatax.recipes.loading import load_recipe
from amatax.recipes.schema import is_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
)  # what could be loaded beside ours
NOT_THE_MODELS = (".gitattributes", ".gitignore", "README.md")
UPLOAD = "run the same command again: what has arrived is not sent twice"


@dataclass(frozen=True)
class PushOptions:
    """How a folder is pushed.

    Attributes:
        private: a repository that is made now is private; one that exists stays as it is.
        revision: the branch; made if it is not there. None: the main one.
        create_pr: open a pull request instead of committing.
        commit_message: of the commit or the pull request.
        token: of the Hub; None: what huggingface_hub finds (HF_TOKEN, then the login).
        replace: files of the repository that the folder does not have are deleted (its history keeps them).
        restricted: publish for everybody though an input is gated or private.
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    token: str | None = field(default=None, repr=False)
    replace: bool = False
    restricted: bool = False


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        repo: its id.
        url: of the commit, or of the pull request.
        commit: 40 hex digits.
        files: bytes of each, by name.
        notes: what a careful user wants to know.
        sent: by this run; else it was there before.
    """

    repo: str
    url: str
    commit: str
    files: dict[str, int]
    notes: list[str]
    sent: bool = True


def push_folder(
    folder: Path,
    repo: str,
    options: PushOptions,
    *,
    start: Callable[[int], None] = lambda n: None,
    advance: Callable[[int], None] = lambda n: None,
    say: Callable[[str], None] = lambda text: None,
) -> Pushed:
    """Upload a finished merge, and compare what arrived with what was sent.

    Args:
        folder: what `amatax merge` wrote.
        repo: owner/name.
        options: see PushOptions.
        start, advance: told the bytes that are read to check the folder.
        say: gets a line for the user.

    Raises:
        OutputError: if the folder is not a finished merge as it was recorded.
        HubError: if the Hub says no, or holds something else at the end.
    """
    recipe = load_recipe(folder / RECIPE) if (folder / RECIPE).is_file() else None
    target = check_push(recipe.models.references() if recipe is not None else {}, repo, options)
    start(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    files, record = finished_files(folder, advance)
    recipe = recipe or load_recipe(folder / RECIPE)
    api = hub_api(clean_token(options))
    try:
        stale = stale_files(api, repo, files, options) if target.exists else []
        front, sections = card_facts(target.facts)
        with staged(folder, files, record, repo, *merged_blocks(folder, recipe), front, sections) as stage:
            sent = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
            check_card(stage / "README.md")
            _make_room(api, repo, target, options, say)
            say(f"uploading {len(sent)} files")
            info = api.upload_folder(
                repo_id=repo,
                folder_path=stage,
                revision=options.revision,
                create_pr=options.create_pr,
                commit_message=options.commit_message or f"Merge by amatax {__version__}",
                delete_patterns=[escape(name) for name in stale] or None,
            )
            say("comparing what arrived")
            sizes = arrived(api, repo, info.oid, stage, sent)
            finished_files(folder)  # what was sent, and is there, is what was recorded: nobody wrote to it meanwhile
    except AmataxError:
        raise
    except Exception as error:
        raise hub_error(error, repo, options.revision or "", writing=True) from error
    notes = push_notes(repo, target, recipe.models.references(), sections)
    if options.create_pr and not info.pr_url:
        notes.insert(0, "the repository holds this very model already: no pull request was opened")
    return Pushed(repo, info.pr_url or info.commit_url, info.oid, sizes, notes)


def clean_token(options: PushOptions) -> str | None:
    """The token as a header may hold it.

    Raises:
        HubError: if it is none; it is never shown.
    """
    token = (options.token or "").strip()
    if options.token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise HubError(
            "--token: this is no token of the Hub's", "copy it again from https://huggingface.co/settings/tokens"
        )
    return token or None


def check_card(path: Path) -> None:
    """Have the Hub look at a card before anything is made there."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            patiently(card.validate)
        except (
            Exception
        ) as error:  # huggingface_hub 1 asks huggingface.co, whatever HF_ENDPOINT says; the commit is looked at anyway
            if not unreachable(error):
                raise


def _make_room(api: HfApi, repo: str, target: Target, options: PushOptions, say: Callable[[str], None]) -> None:
    """The repository and the branch."""
    if not target.exists:
        say(f"making {repo}{' (private)' if options.private else ''}")
        api.create_repo(repo, private=options.private, exist_ok=True)
    if options.revision and options.revision != "main":
        api.create_branch(repo, branch=options.revision, exist_ok=True)


def push_notes(repo: str, target: Target, models: Mapping[str, str], sections: Sequence[str]) -> list[str]:
    """What a careful user wants to know of a push."""
    notes = [
        f"{role} is {why}: {repo} was published all the same, as you asked" for role, why in target.restricted.items()
    ]
    if local := [role for role, ref in models.items() if is_folder(ref)]:
        which = " and ".join(local)
        notes.append(
            f"{which} came from local folders: the card cannot name them, and only who has them can merge again"
        )
    return notes + [section.replace("**", "") for section in sections]


class Target(NamedTuple):
    """A repository that may be written.

    Attributes:
        exists: it is there already.
        facts: what the inputs' cards say, by role.
        restricted: the inputs that are gated or private though everybody will see the result.
    """

    exists: bool
    facts: dict[str, InputFacts]
    restricted: dict[str, str]


def check_push(models: Mapping[str, str], repo: str, options: PushOptions) -> Target:
    """Find out before any work whether a merge of these models may be pushed there.

    Args:
        models: the recipe's, by role.
        repo: owner/name.
        options: see PushOptions.

    Raises:
        OutputError: if the inputs may not be published like that.
        HubError: if nobody is logged in, or the token may not write.
    """
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if options.create_pr and options.revision:
        hint = "a pull request is opened against the main branch: drop one of the two"
        raise OutputError("--create-pr and --revision exclude each other", hint)
    api = hub_api(clean_token(options))
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HubError(f"{repo}: whose repository?", f"name it owner/{repo}")
        who = patiently(api.whoami)
        if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise HubError(f"{repo}: the token of {who.get('name')} may only read", MAY_WRITE)
        try:
            info = patiently(lambda: api.model_info(repo))
        except RepositoryNotFoundError:
            info = None
        facts = input_facts(models, api)
    except AmataxError:
        raise
    except Exception as error:
        raise hub_error(error, repo, "", writing=True) from error
    if info is None and options.create_pr:
        hint = "a pull request needs a repository: check the id"
        raise HubError(f"{repo}: does not exist, or is private", hint)
    if info is not None and options.private and not info.private:
        hint = "make it private on its settings page, or push to another; --private is for one that is made now"
        raise OutputError(f"{repo} exists, and is open to everybody", hint)
    public = not (options.private if info is None else info.private)
    restricted = {role: fact.restricted for role, fact in facts.items() if fact.restricted and public}
    if restricted and not options.restricted:
        role, why = next(iter(restricted.items()))
        raise OutputError(
            f"{role} ({models[role].partition('@')[0]}) is {why}, and {repo} {'is' if info else 'would be'} open to everybody",
            "push to a private repository (--private makes one), or, if the terms allow it, add --allow-restricted",
        )
    return Target(info is not None, facts, restricted)


def stale_files(api: HfApi, repo: str, files: Sequence[str], options: PushOptions) -> list[str]:
    """Files of the repository that the model does not have: weights among them would be loaded with it.

    Raises:
        OutputError: if there are any, and they may not be deleted.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        there = patiently(lambda: api.list_repo_files(repo, revision=options.revision))
    except RevisionNotFoundError:
        there = patiently(lambda: api.list_repo_files(repo))  # what a new branch begins with
    ours = {*files, *NOT_THE_MODELS, "amatax_ratios.png"}
    stale = sorted(name for name in there if name not in ours and _may_be_loaded(name))
    if options.replace or not stale:
        return stale
    raise OutputError(
        f"{repo} holds files of another model ({', '.join(stale[:3])}{' ...' if len(stale) > 3 else ''})",
        "choose another repository, or delete them with --replace (the repository's history keeps them)",
    )


def _may_be_loaded(name: str) -> bool:
    """Whether a file beside the model would be taken for a part of it."""
    return name.lower().endswith(WEIGHTS) or name.endswith(".index.json") or is_side_file(name)


def arrived(
    api: HfApi,
    repo: str,
    commit: str,
    stage: Path,
    sent: Sequence[str],
    before: Mapping[str, tuple[int, str]] | None = None,
) -> dict[str, int]:
    """Bytes of every file on the Hub.

    Args:
        commit: where they are looked for.
        stage: the folder that they were sent from.
        sent: their names.
        before: size and sha256 of files that were sent earlier and are not in the folder any more.

    Raises:
        HubError: if one is missing there, or is another.
    """
    from huggingface_hub.hf_api import RepoFile

    there = {
        item.path: item
        for item in api.list_repo_tree(repo, recursive=True, revision=commit)
        if isinstance(item, RepoFile)
    }
    sizes: dict[str, int] = {}
    known = dict(before or {})
    for name in [*known, *sent]:
        item = there.get(name)
        if item is None:
            raise HubError(f"{repo}: {name} did not arrive", UPLOAD)
        if name in known:
            size, digest = known[name]
        else:
            size = (stage / name).stat().st_size
            digest = digest_of(stage / name, item.blob_id if item.lfs is None else "")
        if item.size != size or digest != (item.lfs.sha256 if item.lfs is not None else item.blob_id):
            raise HubError(f"{repo}: {name} arrived as another file than was sent", UPLOAD)
        sizes[name] = size
    if left := sorted(
        name for name in there if _may_be_loaded(name) and name not in sizes and name not in NOT_THE_MODELS
    ):
        raise HubError(f"{repo}: {left[0]} was added meanwhile, by somebody else", "look at the repository's history")
    return sizes
