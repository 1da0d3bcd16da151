"""Shards to the Hub as they are finished: each is committed to a branch of its own; the last commit makes the model whole on its target."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from amatax import __version__
from amatax.checkpoints.downloads import digest_of
from amatax.checkpoints.hub_client import hub_api, patiently
from amatax.checkpoints.hub_errors import hub_error
from amatax.errors import AmataxError, HubError
from amatax.planning.destination import RECORD, WORK
from amatax.planning.plan import Plan
from amatax.publishing.inputs import card_facts
from amatax.publishing.push import (
    UPLOAD,
    Pushed,
    PushOptions,
    Target,
    arrived,
    check_card,
    clean_token,
    push_notes,
    stale_files,
)
from amatax.publishing.staging import CARD, staged
from amatax.writing.record import read_record

T = TypeVar("T")
BRANCH = "amatax-"  # and the first digits of the merge's identity


class Shipping:
    """A Carrier (see amatax.writing.workplace) to a repository.

    Args:
        plan: of the merge.
        repo: owner/name.
        target: what `check_push` found.
        options: as for a push.
        say: gets a line for the user.

    Attributes:
        pushed: what is on the Hub, once it is whole.
    """

    def __init__(
        self,
        plan: Plan,
        repo: str,
        target: Target,
        options: PushOptions,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.plan, self.repo, self.target, self.options, self.say = plan, repo, target, options, say
        self.api = hub_api(clean_token(options))
        self.branch = BRANCH + plan.identity[:12]
        self.pushed: Pushed | None = None
        self._carried: dict[str, tuple[int, str]] = {}  # size and sha256
        self._begun = False

    def already(self) -> bool:
        """Whether an earlier run made this very merge whole there: its record, with the shards and files of their hashes.

        Of a pull request, or of local inputs (which the identity knows by their headers alone), nothing is taken for granted; nor
        where something cannot be read, or another model's files stand beside it.
        """
        far = all(checkpoint.commit is not None for checkpoint in self.plan.checkpoints.values())
        if self.target.exists and far and not self.options.create_pr:
            with suppress(Exception):  # a merge finds out, and says what is wrong
                self.pushed = self._recorded()
        return self.pushed is not None

    def _recorded(self) -> Pushed | None:
        from huggingface_hub.hf_api import RepoFile

        commit = str(patiently(lambda: self.api.model_info(self.repo, revision=self.options.revision)).sha)
        with TemporaryDirectory(prefix="amatax-") as name:

            def fetched(file: str) -> Path:
                return Path(self.api.hf_hub_download(self.repo, file, revision=commit, local_dir=name))

            record = json.loads(fetched(RECORD).read_bytes())
            shards, files = record["carried"], {**record["files"]}
            if record["identity"] != self.plan.identity or shards.keys() != {shard.file for shard in self.plan.shards}:
                return None
            tree = patiently(lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=commit)))
            there = {item.path: item for item in tree if isinstance(item, RepoFile)}
            files.pop(CARD, None)  # people edit it
            for file, digest in {**shards, **files}.items():
                lfs = there[file].lfs
                if (lfs.sha256 if lfs is not None else digest_of(fetched(file))) != digest:
                    return None
        if stale_files(self.api, self.repo, [*files, *shards, RECORD], self.options):
            return None
        sizes = {file: there[file].size for file in sorted({*files, *shards, RECORD, CARD} & there.keys())}
        return Pushed(self.repo, f"{self.api.endpoint}/{self.repo}/commit/{commit}", commit, sizes, [], sent=False)

    def has(self, entry: dict[str, Any]) -> bool:
        """Whether a shard of the journal is on the branch."""
        there = self._asked(lambda: self._sizes([str(entry["file"])]))
        self._carried |= there
        return there.get(entry["file"]) == (entry["bytes"], entry["carried"])

    def take(self, shard: Path) -> str:
        """Commit a shard to the branch, and look at what arrived: its sha256."""
        from huggingface_hub import CommitOperationAdd

        def commit() -> str:
            self._begin()
            operation = CommitOperationAdd(shard.name, shard)
            patiently(  # the same file again is no second commit
                lambda: self.api.create_commit(
                    self.repo,
                    [operation],
                    commit_message=f"{shard.name}, of {len(self.plan.shards)}",
                    revision=self.branch,
                )
            )
            sent = (shard.stat().st_size, operation.upload_info.sha256.hex())
            there = self._sizes([shard.name])
            if there.get(shard.name) != sent:
                raise HubError(f"{self.repo}: {shard.name} arrived as another file than was sent", UPLOAD)
            self._carried |= there
            return sent[1]

        self.say(f"sending {shard.name}")
        return self._asked(commit)

    def finish(self, folder: Path) -> None:
        """The commit that makes the model whole on its target: the shards by reference, and everything else."""
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        files = [name for name in files if not name.startswith(f"{WORK}/")]
        self.pushed = self._asked(lambda: self._finish(folder, files))

    def clear(self) -> None:
        """Remove the branch; its work is done, and the model whole whether that can be or not."""
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            patiently(lambda: self.api.delete_branch(self.repo, branch=self.branch))
        except RevisionNotFoundError:
            return
        except Exception as error:
            why = hub_error(error, self.repo, self.branch, writing=True)
            if self.pushed is None or not isinstance(why, HubError):
                raise why from error
            told = f"the branch {self.branch} stays ({why.message}): `hf repos branch delete {self.repo} {self.branch}`"
            self.pushed.notes.append(told)

    def _finish(self, folder: Path, files: list[str]) -> Pushed:
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        self._begin()
        options, models = self.options, self.plan.recipe.models.references()
        shards = [shard.file for shard in self.plan.shards]
        stale = stale_files(self.api, self.repo, [*files, *shards], options) if self.target.exists else []
        if options.revision and options.revision != "main":
            self.api.create_branch(self.repo, branch=options.revision, exist_ok=True)
        front, sections = card_facts(self.target.facts)
        loaded_by = self.plan.checkpoints[self.plan.recipe.output.config].loaded_by
        with staged(
            folder, files, read_record(folder), self.repo, self.plan.blocks, loaded_by, front, sections
        ) as stage:
            sent = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
            check_card(stage / "README.md")
            info = self.api.create_commit(
                self.repo,
                [
                    *(CommitOperationCopy(name, name, src_revision=self.branch) for name in shards),
                    *(CommitOperationAdd(name, stage / name) for name in sent),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message=options.commit_message or f"Merge by amatax {__version__}",
                revision=options.revision,
                create_pr=options.create_pr,
            )
            sizes = arrived(self.api, self.repo, info.oid, stage, sent, {name: self._carried[name] for name in shards})
        notes = push_notes(self.repo, self.target, models, sections)
        return Pushed(self.repo, info.pr_url or info.commit_url, info.oid, sizes, notes)

    def _begin(self) -> None:
        """The repository and the branch."""
        if not self._begun:
            if not self.target.exists:
                self.api.create_repo(self.repo, private=self.options.private, exist_ok=True)
            self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            self._begun = True

    def _sizes(self, names: list[str]) -> dict[str, tuple[int, str]]:
        """Size and sha256 of shards on the branch."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        try:
            found = patiently(lambda: self.api.get_paths_info(self.repo, names, revision=self.branch))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return {}
        return {f.path: (f.size, f.lfs.sha256) for f in found if isinstance(f, RepoFile) and f.lfs is not None}

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except AmataxError:
            raise
        except Exception as error:
            raise hub_error(error, self.repo, self.branch, writing=True) from error
