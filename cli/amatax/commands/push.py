"""amatax push"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amatax.commands.text import human_bytes
from amatax.errors import OutputError

if TYPE_CHECKING:
    from amatax.publishing.push import Pushed


Private = Annotated[bool, typer.Option("--private", help="If the repository is made now, make it private.")]
Revision = Annotated[str, typer.Option(help="The branch to push to; made if it is not there.", show_default=False)]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Message = Annotated[str, typer.Option(help="Of the commit, or the pull request.", show_default=False)]
Token = Annotated[str, typer.Option(help="A Hub token; otherwise HF_TOKEN, or your login.", show_default=False)]
Replace = Annotated[bool, typer.Option("--replace", help="Delete the repository's files that this model lacks.")]
Restricted = Annotated[
    bool, typer.Option("--allow-restricted", help="Publish for everybody though an input is gated or private.")
]


def run(
    folder: str = typer.Argument(help="A folder that `amatax merge` has finished."),
    repo: str = typer.Argument(help="The repository on the Hub, owner/name; made if it does not exist."),
    private: Private = False,
    revision: Revision = "",
    create_pr: CreatePr = False,
    commit_message: Message = "",
    token: Token = "",
    replace: Replace = False,
    allow_restricted: Restricted = False,
    verify: bool = typer.Option(False, "--verify", help="First merge again and compare bit for bit."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Push a merged model to the Hub, with a card that says what it is made of, and check what arrived."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher

    wishes = push_options(private, revision, create_pr, commit_message, token, replace, allow_restricted)
    still = quiet or as_json
    if still:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if verify:
        with ProgressWatcher("verifying", quiet=still) as watcher:
            if not api.verify(folder, watcher=watcher).good:
                raise OutputError(
                    f"{folder}: not what its recipe gives", f"`amatax verify {folder}` tells what differs"
                )
    with ProgressWatcher("checking", quiet=still) as watcher:
        pushed = api.push(folder, repo, watcher=watcher, **wishes)
    if as_json:
        print(json.dumps(asdict(pushed), indent=2))
    elif not quiet:
        print("\n".join(pushed_lines(pushed)))


def push_options(
    private: bool, revision: str, create_pr: bool, commit_message: str, token: str, replace: bool, restricted: bool
) -> dict[str, Any]:
    """The options of `api.push`."""
    return {
        "private": private,
        "revision": revision or None,
        "create_pr": create_pr,
        "commit_message": commit_message or None,
        "token": token or None,
        "replace": replace,
        "restricted": restricted,
    }


def pushed_lines(pushed: Pushed) -> list[str]:
    """What is on the Hub now, for people."""
    size = human_bytes(sum(pushed.files.values()))
    files = f"{len(pushed.files)} files, {size}, all there with the same sizes and hashes"
    if not pushed.sent:
        files = f"this very merge is there already ({len(pushed.files)} files, {size}): nothing was sent"
    return [
        f"{'pushed to ' if pushed.sent else ''}{pushed.repo}: {files}",
        *(f"note: {note}" for note in pushed.notes),
        f"see:    {pushed.url}",
        f'load:   from_pretrained("{pushed.repo}", revision="{pushed.commit}")',
    ]
