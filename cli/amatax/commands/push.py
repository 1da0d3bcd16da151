"""amatax push"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from amatax.commands.text import human_bytes
from amatax.errors import OutputError

if TYPE_CHECKING:
    from amatax.publishing.push import Pushed


def run(
    folder: str = typer.Argument(help="A folder that `amatax merge` has finished."),
    repo: str = typer.Argument(help="The repository on the Hub, owner/name; made if it does not exist."),
    private: bool = typer.Option(False, "--private", help="If the repository is made now, make it private."),
    revision: str = typer.Option("", help="The branch to push to; made if it does not exist.", show_default=False),
    create_pr: bool = typer.Option(False, "--create-pr", help="Open a pull request instead of committing."),
    commit_message: str = typer.Option("", help="Of the commit, or the pull request.", show_default=False),
    token: str = typer.Option("", help="A Hub token; otherwise HF_TOKEN or your login.", show_default=False),
    replace: bool = typer.Option(
        False, "--replace", help="Delete the repository's files that this model does not have."
    ),
    allow_restricted: bool = typer.Option(
        False, "--allow-restricted", help="Publish for everybody though an input is gated or private."
    ),
    verify: bool = typer.Option(False, "--verify", help="First merge again and compare bit for bit."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print nothing but errors."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Push a merged model to the Hub, with a card that says what it is made of, and check what arrived."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher

    still = quiet or as_json
    if still:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    if verify:
        with ProgressWatcher("verifying", quiet=still) as watcher:
            if not api.verify(folder, watcher=watcher).good:
                raise OutputError(
                    f"{folder}: not what its recipe gives", f"`amatax verify {folder}` tells what differs"
                )
    with ProgressWatcher("checking", quiet=still) as watcher:
        pushed = api.push(
            folder,
            repo,
            private=private,
            revision=revision or None,
            create_pr=create_pr,
            commit_message=commit_message or None,
            token=token or None,
            replace=replace,
            restricted=allow_restricted,
            watcher=watcher,
        )
    if as_json:
        print(json.dumps(asdict(pushed), indent=2))
    elif not quiet:
        print("\n".join(pushed_lines(pushed)))


def pushed_lines(pushed: Pushed) -> list[str]:
    """What is on the Hub now, for people."""
    size = human_bytes(sum(pushed.files.values()))
    return [
        f"pushed to {pushed.repo}: {len(pushed.files)} files, {size}, all there with the same sizes and hashes",
        *(f"note: {note}" for note in pushed.notes),
        f"see:    {pushed.url}",
        f'load:   from_pretrained("{pushed.repo}", revision="{pushed.commit[:12]}")',
    ]
