"""The stand-in Hub's addresses: what the real huggingface_hub client and hf_xet ask for, and what they are answered."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub_access import INVALID, Access
from tests.hub_storage import Refused, copy_pieces, files, is_lfs


class Api(Access):
    """The Hub's routes: each method's name stands in ROUTES, its arguments are the groups of the address."""

    def route(self) -> None:
        """Answer by the first address that fits."""
        for methods, pattern, name in ROUTES:
            if self.command in methods.split() and (found := re.fullmatch(pattern, self.raw)):
                getattr(self, name)(*(group and unquote(group) for group in found.groups()))
                return
        raise Refused(404, "EntryNotFound", "no such address")

    # --- reading -------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, message=INVALID)
        self.send_json(
            {
                "type": "user",
                "id": "0",
                "name": user["name"],
                "fullname": user["name"],
                "orgs": [{"type": "org", "name": name} for name in user.get("orgs", [])],
                "auth": {"type": "access_token", "accessToken": {"displayName": "a token", "role": user["role"]}},
            }
        )

    def info(self, repo: str, revision: str | None) -> None:
        commit = self.known(repo, revision or "main")
        folder = self.hub.folder(repo, revision or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files(folder)]
        if "blobs" in self.query:
            for sibling in siblings:
                entry = self.hub.entry(folder, sibling["rfilename"])
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if lfs := entry.get("lfs"):
                    sibling["lfs"] = {**lfs, "sha256": lfs["oid"]}
        card = front_matter(folder / "README.md")
        date = self.hub.log.get(commit, {}).get("date", "2025-01-01T00:00:00.000Z")
        self.send_json(
            {
                "_id": "0",
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": commit,
                "siblings": siblings,
                "private": repo in self.hub.private,
                "gated": self.hub.gated.get(repo, False),
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [str(tag) for tag in card.get("tags") or []],
                "library_name": card.get("library_name"),
                "pipeline_tag": card.get("pipeline_tag"),
                "cardData": card,
                "createdAt": date,
                "lastModified": date,
            }
        )
        self.hub.move(repo, self.hub.moves.pop(repo, {}))

    def tree(self, repo: str, revision: str, below: str | None) -> None:
        self.known(repo, revision)
        folder = self.hub.folder(repo, revision)
        place = folder / (below or "")
        if not place.is_dir():
            raise Refused(404, "EntryNotFound", f"{below} does not exist")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        paths = sorted(place.rglob("*") if recursive else place.iterdir())
        self.send_json([self.hub.entry(folder, str(path.relative_to(folder))) for path in paths])
        self.hub.move(repo, self.hub.moves.pop(repo, {}))

    def paths_info(self, repo: str, revision: str) -> None:
        self.known(repo, revision)
        folder = self.hub.folder(repo, revision)
        body = self.receive_all().decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self.send_json([self.hub.entry(folder, path) for path in asked if path and (folder / path).exists()])

    def refs(self, repo: str) -> None:
        self.known(repo)
        listed: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for name in self.hub.repos[repo]:
            pull = name.startswith("refs/pr/")
            listed["pullRequests" if pull else "branches"].append(
                {
                    "name": name,
                    "ref": name if pull else f"refs/heads/{name}",
                    "targetCommit": self.hub.head(repo, name),
                }
            )
        self.send_json(listed)

    def commits(self, repo: str, revision: str) -> None:
        sha, listed = self.known(repo, revision), []
        while sha in self.hub.log:
            entry = self.hub.log[sha]
            listed.append({"id": sha, "authors": [], "date": entry["date"], "title": entry["title"], "message": ""})
            sha = entry["parent"]
        self.send_json(listed)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.readable(repo, revision)
        folder = self.hub.folder(repo, revision)
        file, headers = folder / path, {"X-Repo-Commit": commit}
        if not file.is_file():
            raise Refused(404, "EntryNotFound", f"{path} does not exist", headers=headers)
        entry = self.hub.entry(folder, path)
        if not (lfs := entry.get("lfs")):
            self.send_file(file, {**headers, "ETag": f'"{entry["oid"]}"'})
            return
        headers |= {"ETag": f'"{lfs["oid"]}"', "X-Linked-ETag": f'"{lfs["oid"]}"', "X-Linked-Size": str(lfs["size"])}
        if "xetHash" in entry:
            route = f"{self.hub.url}/api/models/{repo}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": entry["xetHash"], "Link": f'<{route}>; rel="xet-auth"'}
        # another origin, as the Hub's CDN is: clients keep their token to themselves there
        location = f"{self.hub.cdn}/cdn/{repo}/resolve/{commit}/{quote(path)}"
        self.deliver(302, {**headers, "Location": location}, b"")

    def cdn(self, repo: str, commit: str, path: str) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, message="Only one auth mechanism allowed")
        if self.hub.commit(repo, commit) is None:
            raise Refused(404, "EntryNotFound", "no such address")
        folder = self.hub.folder(repo, commit)
        self.send_file(folder / path, {"ETag": f'"{self.hub.oids(folder / path)[1]}"'})

    # --- writing -------------------------------------------------------------------------------------------------

    def create(self) -> None:
        body = self.receive_json()
        user = self.writer(body.get("organization") or "")
        repo = f"{body.get('organization') or user['name']}/{body['name']}"
        private = body.get("visibility") == "private" or bool(body.get("private"))
        answer = {"url": f"{self.hub.url}/{repo}", "name": repo, "id": "0"}
        try:
            self.hub.create(repo, private)
        except Refused as no:
            no.extra["body"] = answer
            raise
        self.send_json(answer)

    def validate_yaml(self) -> None:
        import yaml

        try:
            parse_front_matter(self.receive_json()["content"])
        except yaml.YAMLError as error:
            self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self.known(repo, revision, write=True)
        folder, answers = self.hub.folder(repo, revision), []
        for file in self.receive_json()["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
            if (folder / file["path"]).is_file():
                oid, sha256 = self.hub.oids(folder / file["path"])
                answer["oid"] = sha256 or oid
            answers.append(answer)
        self.send_json({"files": answers})

    def commit(self, repo: str, revision: str) -> None:
        self.known(repo, revision, write=True)
        header, *operations = (json.loads(line) for line in self.receive_all().splitlines() if line.strip())
        title = header["value"]["summary"]
        answer: dict[str, Any] = {"success": True, "hookOutput": ""}
        folder = self.hub.folder(repo, revision)
        if revision not in self.hub.repos[repo]:
            raise Refused(400, message=f"{revision} is no branch")

        def content(sha256: str) -> Path | None:
            return self.hub.content(sha256, f"{self.hub.url}/own/xet", folder)

        if "create_pr" in self.query:
            number = self.hub.open_pull(repo, title, header["value"].get("description", ""), "someone")
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
            revision = f"refs/pr/{number}"
        sha = self.hub.add_commit(repo, revision, title, operations, header["value"].get("parentCommit"), content)
        self.send_json({**answer, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def branch(self, repo: str, name: str) -> None:
        start = self.receive_json().get("startingPoint") or "main"
        self.known(repo, start, write=True)
        self.hub.branch(repo, name, start)
        self.send_json({})

    def delete_branch(self, repo: str, name: str) -> None:
        self.known(repo, name, write=True)
        self.hub.delete_branch(repo, name)
        self.send_json({})

    def discuss(self, repo: str) -> None:
        self.known(repo, "main", write=True)
        body = self.receive_json()
        if not body.get("pullRequest"):
            raise Refused(501, message="only pull requests")
        author = self.writer(repo.split("/")[0])["name"]
        self.send_json({"num": self.hub.open_pull(repo, body["title"], body["description"], author)})

    def pull(self, repo: str, number: str) -> None:
        self.known(repo)
        pulls = self.hub.pulls.get(repo, [])
        if int(number) > len(pulls):
            raise Refused(404, "EntryNotFound", "no such discussion")
        pull = pulls[int(number) - 1]
        self.send_json(
            {
                "title": pull["title"],
                "num": int(number),
                "author": {"name": pull["author"]},
                "createdAt": "2025-01-01T00:00:00.000Z",
                "status": pull["status"],
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
                "events": [],
                "changes": {"base": "refs/heads/main", "mergeCommitId": pull.get("merged")},
                "filesWithConflicts": [],
            }
        )

    def merge(self, repo: str, number: str) -> None:
        self.known(repo, f"refs/pr/{number}", write=True)
        self.hub.merge_pull(repo, int(number))
        self.send_json({})

    # --- large files, by LFS -------------------------------------------------------------------------------------

    def lfs_batch(self, repo: str) -> None:
        self.known(repo, write=True)
        objects: list[dict[str, Any]] = []
        for wanted in self.receive_json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            upload: dict[str, Any] = {"href": f"{self.hub.cdn}/lfs/{oid}"}
            if self.hub.part and size > self.hub.part:
                upload["header"] = {"chunk_size": str(self.hub.part)} | {
                    f"{n:05}": f"{self.hub.cdn}/lfs/{oid}/{n}" for n in range(1, math.ceil(size / self.hub.part) + 1)
                }
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"}}
            known = self.hub.blob(oid).exists()
            objects.append({"oid": oid, "size": size} if known else {"oid": oid, "size": size, "actions": actions})
        self.send_json({"transfer": "multipart" if self.hub.part else "basic", "objects": objects})

    def lfs_verify(self, repo: str) -> None:
        self.known(repo, write=True)
        body = self.receive_json()
        blob = self.hub.blob(body["oid"])
        if not blob.exists() or blob.stat().st_size != body["size"]:
            raise Refused(404, message="the object was not uploaded")
        self.send_json({})

    def lfs_put(self, oid: str) -> None:
        self.hub.receive(self.receive, oid)
        self.deliver(200, {}, b"")

    def lfs_part(self, oid: str, number: str) -> None:
        with (self.hub.root / "uploads" / f"{oid}.{number}").open("wb") as file:
            while piece := self.receive():
                file.write(piece)
        self.deliver(200, {"ETag": f'"{number}"'}, b"")

    def lfs_complete(self, oid: str) -> None:
        parts = [self.hub.root / "uploads" / f"{oid}.{part['partNumber']}" for part in self.receive_json()["parts"]]
        whole = self.hub.root / "uploads" / oid
        with whole.open("wb") as file:
            copy_pieces(parts, file)
        self.hub.adopt(whole, oid)
        self.send_json({})

    # --- large files, by xet -------------------------------------------------------------------------------------

    def xet_token(self, repo: str, kind: str, revision: str) -> None:
        if kind == "write":
            self.known(repo, write=True)
        else:
            self.readable(repo, revision)
        url, token, end = f"{self.hub.url}/xet", f"xet-{kind}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(end)}
        self.send_json({"casUrl": url, "accessToken": token, "exp": end}, headers=headers)

    def xet_xorb(self, hash: str) -> None:
        self.send_json({"was_inserted": self.hub.xet.add_xorb(hash, self.receive_all())})

    def xet_shard(self) -> None:
        if missing := self.hub.xet.add_shard(self.receive_all()):
            raise Refused(400, message=f"xorb {missing} is not here")
        self.send_json({"result": 1})

    def xet_reconstruction(self, own: str | None, hash: str) -> None:
        if (file := self.hub.xet.files.get(hash)) is None:
            raise Refused(404, message="no such file")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, file.size - 1)
        if first >= file.size:
            raise Refused(416, message="range")
        self.send_json(self.hub.xet.reconstruction(file, first, last, f"{self.hub.cdn}{own or ''}/xet/fetch"))

    def xet_fetch(self, hash: str) -> None:
        self.send_file(self.hub.xet.xorb(hash), {})

    def telemetry(self) -> None:
        self.send_json({})


def front_matter(readme: Path) -> dict[str, Any]:
    """A model card's metadata."""
    return parse_front_matter(readme.read_text()) if readme.is_file() else {}


def parse_front_matter(text: str) -> dict[str, Any]:
    """The YAML between a text's first two rulers."""
    import yaml

    found = re.match(r"---\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    return dict(yaml.safe_load(found[1]) or {}) if found else {}


REPO = r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"{REPO}/refs", "refs"),
    ("GET", rf"{REPO}/tree/([^/]+)(?:/(.+))?", "tree"),
    ("POST", rf"{REPO}/paths-info/([^/]+)", "paths_info"),
    ("GET", rf"{REPO}/commits/([^/]+)", "commits"),
    ("POST", rf"{REPO}/preupload/([^/]+)", "preupload"),
    ("POST", rf"{REPO}/commit/([^/]+)", "commit"),
    ("POST", rf"{REPO}/branch/([^/]+)", "branch"),
    ("DELETE", rf"{REPO}/branch/([^/]+)", "delete_branch"),
    ("POST", rf"{REPO}/discussions", "discuss"),
    ("GET", rf"{REPO}/discussions/(\d+)", "pull"),
    ("POST", rf"{REPO}/discussions/(\d+)/merge", "merge"),
    ("GET", rf"{REPO}/xet-(read|write)-token/([^/]+)", "xet_token"),
    ("GET", rf"{REPO}(?:/revision/([^/]+))?/?", "info"),
    ("GET HEAD", r"/cdn/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "cdn"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/verify", "lfs_verify"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
    ("PUT", r"/lfs/([0-9a-f]{64})/(\d+)", "lfs_part"),
    ("POST", r"/lfs/([0-9a-f]{64})", "lfs_complete"),
    ("POST", r"/xet/v1/xorbs/default/([0-9a-f]{64})", "xet_xorb"),
    ("POST", r"/xet/v1/shards", "xet_shard"),
    ("GET", r"(/own)?/xet/v1/reconstructions/([0-9a-f]{64})", "xet_reconstruction"),
    ("GET", r"(?:/own)?/xet/fetch/([0-9a-f]{64})", "xet_fetch"),
    ("POST", r"/v1/telemetry", "telemetry"),
    ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
]
