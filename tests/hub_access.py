"""Who may do what on the stand-in Hub: tokens, private and gated repositories, refusals."""

from __future__ import annotations

from typing import Any

from tests.hub_storage import Refused
from tests.hub_wire import Wire

INVALID = "Invalid username or password."


class Access(Wire):
    """A connection that knows whose it is."""

    def user(self) -> dict[str, Any] | None:
        """Whose token came with the request."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if not self.hub.tokens:
            return {"name": "someone", "role": "write"}
        if token not in self.hub.tokens:
            raise Refused(401, message=INVALID)
        return self.hub.tokens[token]

    def writer(self, namespace: str) -> dict[str, Any]:
        """Whose token came with the request, if it may write there."""
        user = self.user()
        if user is None and not self.hub.tokens:
            return {"name": "someone", "role": "write"}
        if user is None:
            raise Refused(401, message=INVALID)
        if user.get("role") == "read" or ("orgs" in user and namespace not in (user["name"], *user["orgs"])):
            raise Refused(403, message=f"You don't have the rights to write under the namespace {namespace}")
        return user

    def known(self, repo: str, revision: str | None = None, write: bool = False) -> str:
        """The revision's commit, if the repository is there for this user."""
        if repo in self.hub.refuse:
            raise Refused(*self.hub.refuse[repo])
        user = self.writer(repo.split("/")[0]) if write else self.user()
        if repo in self.hub.private and user is None:
            raise Refused(401, "RepoNotFound", INVALID)
        if repo not in self.hub.repos:
            raise Refused(404, "RepoNotFound", "Repository not found")
        if revision is None:
            return ""
        if (commit := self.hub.commit(repo, revision)) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def readable(self, repo: str, revision: str) -> str:
        """The revision's commit, if this user may have its files."""
        commit = self.known(repo, revision)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo in self.hub.gated and token not in self.hub.granted:
            raise Refused(403, "GatedRepo", f"Access to model {repo} is restricted")
        return commit
