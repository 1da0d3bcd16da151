"""The stand-in Hub against the real client: uploads and downloads by LFS and by xet, refusals, ranges, faults, a restart."""

from __future__ import annotations

import os
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hub import Fault, Hub, hub_process, running_hub
from tests.hub_storage import digest_of

WAYS = pytest.mark.parametrize("way", ["xet", "lfs"])
CARD = "---\ntags: [merge]\nlibrary_name: transformers\nbase_model: [acme/sft]\n---\n# A merge\n"


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub as if it was imported without HF_HUB_OFFLINE, and impatient."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_XET_TELEMETRY_ENABLED", "0")
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(module.time), "sleep": lambda seconds: None}))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder to upload: weights in two files, what is small, and a sub-folder."""
    folder = tmp_path / "model"
    (folder / "layers").mkdir(parents=True)
    for n in (1, 2):
        header = b'{"w":{"dtype":"U8","shape":[300000],"data_offsets":[0,300000]}}'
        weights = struct.pack("<Q", len(header)) + header + os.urandom(150_000) + bytes(150_000)
        (folder / f"model-0000{n}-of-00002.safetensors").write_bytes(weights)
    (folder / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "layers" / "attention.py").write_text("never run")
    (folder / "empty.bin").touch()
    return folder


def client(url: str, way: str, monkeypatch: pytest.MonkeyPatch, token: str | bool | None = False) -> Any:
    """An HfApi for this address."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", way == "lfs")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    return HfApi(endpoint=url, token=token)


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts
    }


def asked(hub: Hub, method: str, path: str) -> list[str]:
    """The requests by this method whose path holds `path`."""
    return [p for m, p in hub.requests if m == method and path in p]


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """A GET's status, body and headers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@WAYS
def test_what_is_uploaded_comes_back(
    hub: Hub, model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = client(hub.url, way, monkeypatch)
    assert not api.repo_exists("acme/merged")
    assert api.create_repo("acme/merged").repo_id == "acme/merged"
    first = api.model_info("acme/merged").sha
    done = api.upload_folder(repo_id="acme/merged", folder_path=model, commit_message="weights")
    assert bool(asked(hub, "POST", "/xet/v1/xorbs/")) == (way == "xet")
    assert bool(asked(hub, "PUT", "/lfs/")) == (way == "lfs")

    info = api.model_info("acme/merged", files_metadata=True)
    assert info.sha == done.oid != first
    assert {s.rfilename for s in info.siblings} == {".gitattributes", *contents(model)}
    weights = next(s for s in info.siblings if s.rfilename == "model-00001-of-00002.safetensors")
    assert weights.lfs.sha256 == digest_of(model / weights.rfilename)
    assert info.tags == ["merge"]
    assert info.card_data.base_model == ["acme/sft"]
    assert [commit.title for commit in api.list_repo_commits("acme/merged")] == ["weights", "initial commit"]
    assert api.list_repo_files("acme/merged", revision=first) == [".gitattributes"]

    tree = {entry.path: entry for entry in api.list_repo_tree("acme/merged", recursive=True)}
    assert set(tree) == {".gitattributes", "layers", *contents(model)}
    assert bool(tree["model-00001-of-00002.safetensors"].xet_hash) == (way == "xet")
    assert tree["empty.bin"].lfs is None
    assert [entry.path for entry in api.list_repo_tree("acme/merged", "layers")] == ["layers/attention.py"]
    assert api.get_paths_info("acme/merged", ["config.json", "none"])[0].size == 2

    for back in ("xet", "lfs"):
        api = client(hub.url, back, monkeypatch)
        target = tmp_path / f"by_{back}"
        api.snapshot_download("acme/merged", local_dir=target, cache_dir=tmp_path / f"cache_{back}")
        assert contents(target) == {".gitattributes": (target / ".gitattributes").read_bytes(), **contents(model)}
        file = api.hf_hub_download("acme/merged", "layers/attention.py", cache_dir=tmp_path / f"cache_{back}")
        assert Path(file).read_text() == "never run"
    assert bool(asked(hub, "GET", "/xet/v1/reconstructions/")) == (way == "xet")
    assert asked(hub, "GET", "/cdn/acme/merged/")

    again = api.upload_folder(repo_id="acme/merged", folder_path=model)
    assert again.oid == done.oid == hub.commit("acme/merged", "main")


@WAYS
def test_branches_pull_requests_and_deletions(hub: Hub, model: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    api = client(hub.url, way, monkeypatch)
    api.create_repo("acme/merged", private=True)
    assert hub.private == {"acme/merged"}
    hub.private.clear()
    start = hub.commit("acme/merged", "main")
    pull = api.upload_folder(repo_id="acme/merged", folder_path=model, create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert hub.commit("acme/merged", "main") == start
    assert api.model_info("acme/merged", revision="refs/pr/1").sha == hub.commit("acme/merged", "refs/pr/1") == pull.oid
    api.merge_pull_request("acme/merged", 1)
    assert hub.commit("acme/merged", "main") == pull.oid

    api.create_branch("acme/merged", branch="v1/old")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("acme/merged", branch="v1/old")
    change = [CommitOperationDelete("layers/"), CommitOperationAdd("config.json", b'{"a": 1}')]
    done = api.create_commit("acme/merged", change, commit_message="less", parent_commit=pull.oid)
    assert (hub.folder("acme/merged", pull.oid) / "config.json").read_text() == "{}"
    assert "layers/attention.py" in api.list_repo_files("acme/merged", revision="v1/old")
    assert "layers/attention.py" not in api.list_repo_files("acme/merged")
    refs = api.list_repo_refs("acme/merged", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": done.oid, "v1/old": pull.oid}
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]

    change = [CommitOperationAdd("config.json", b"late")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("acme/merged", change, commit_message="late", parent_commit=pull.oid)


def test_large_files_in_parts(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.part = 100_000
    api = client(hub.url, "lfs", monkeypatch)
    api.create_repo("acme/merged")
    api.upload_folder(repo_id="acme/merged", folder_path=model)
    assert contents(hub.folder("acme/merged", "main")).items() >= contents(model).items()
    assert len(asked(hub, "PUT", "/lfs/")) == 8


def test_a_commit_of_what_was_not_uploaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import CommitOperationAdd, _commit_api
    from huggingface_hub.errors import BadRequestError

    api = client(hub.url, "lfs", monkeypatch)
    api.create_repo("acme/merged")
    monkeypatch.setattr(_commit_api, "_upload_lfs_files", lambda **kwargs: None)
    with pytest.raises(BadRequestError, match="does not exist"):
        api.create_commit("acme/merged", [CommitOperationAdd("model.safetensors", b"weights")], commit_message="none")


def test_a_commit_to_a_test_s_own_folder(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = client(hub.url, "lfs", monkeypatch)
    hub.repos = {"acme/sft": {"main": model, "v2": model}}
    old = hub.commit("acme/sft", "main")
    assert api.model_info("acme/sft", revision="v2").sha == hub.commit("acme/sft", "v2") != old
    new = api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id="acme/sft").oid
    assert api.list_repo_files("acme/sft", revision=old) == sorted(contents(model))
    assert api.list_repo_files("acme/sft", revision=new) == sorted([*contents(model), "more.txt"])
    assert hub.folder("acme/sft", "v2") == model


def test_cards_file_systems_and_metadata(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem, ModelCard

    api = client(hub.url, "lfs", monkeypatch)
    hub.repos = {"acme/sft": {"main": model}}
    card = ModelCard.load(model / "README.md")
    card.validate()
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="acme/sft")
    metadata = api.get_safetensors_metadata("acme/sft")
    assert metadata.files_metadata["model-00002-of-00002.safetensors"].tensors["w"].shape == [300000]
    files = HfFileSystem(endpoint=hub.url, token=False, skip_instance_cache=True)
    assert "acme/sft/layers/attention.py" in files.glob("acme/sft/**")
    path = "acme/sft/model-00001-of-00002.safetensors"
    assert files.cat_file(path, start=100, end=200) == (model / path.rpartition("/")[2]).read_bytes()[100:200]


def test_tokens(hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    hub.tokens = {"hf_good": {"name": "acme", "role": "write"}, "hf_read": {"name": "acme", "role": "read"}}
    hub.repos = {"acme/own": {"main": model}, "acme/gated": {"main": model}}
    hub.private = {"acme/own"}
    hub.gated = {"acme/gated": "manual"}
    good = client(hub.url, "lfs", monkeypatch, "hf_good")
    assert good.whoami()["name"] == "acme"
    assert good.whoami()["auth"]["accessToken"]["role"] == "write"
    assert good.create_repo("new").repo_id == "acme/new"
    with pytest.raises(HfHubHTTPError, match="409"):
        good.create_repo("new")
    assert good.create_repo("new", exist_ok=True).repo_id == "acme/new"
    assert good.model_info("acme/own").private

    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(hub.url, "lfs", monkeypatch, "hf_bad").whoami()
    with pytest.raises(HfHubHTTPError, match="401"):
        client(hub.url, "lfs", monkeypatch, "hf_bad").create_repo("acme/newer")
    with pytest.raises(HfHubHTTPError, match="403"):
        client(hub.url, "lfs", monkeypatch, "hf_read").create_repo("acme/newer")
    with pytest.raises(HfHubHTTPError, match="403"):
        client(hub.url, "lfs", monkeypatch, "hf_read").upload_folder(repo_id="acme/new", folder_path=model)
    nobody = client(hub.url, "lfs", monkeypatch)
    with pytest.raises(HfHubHTTPError, match="401"):
        nobody.create_repo("acme/newer")
    for repo in ("acme/own", "acme/none"):
        with pytest.raises(RepositoryNotFoundError):
            nobody.model_info(repo)
    assert nobody.model_info("acme/gated").gated == "manual"
    with pytest.raises(GatedRepoError):
        good.hf_hub_download("acme/gated", "config.json", cache_dir=tmp_path)
    hub.granted = {"hf_good"}
    assert Path(good.hf_hub_download("acme/gated", "config.json", cache_dir=tmp_path)).read_text() == "{}"
    weights = "model-00001-of-00002.safetensors"
    assert (
        Path(good.hf_hub_download("acme/gated", weights, cache_dir=tmp_path)).read_bytes()
        == (model / weights).read_bytes()
    )
    assert hub.authorizations == {"Bearer hf_good", "Bearer hf_read", "Bearer hf_bad"}
    assert hub.commit("acme/newer", "main") is None

    hub.tokens["hf_good"]["orgs"] = ["lab"]
    assert good.create_repo("lab/new").repo_id == "lab/new"
    with pytest.raises(HfHubHTTPError, match="namespace other"):
        good.create_repo("other/new")


def test_ranges(hub: Hub, model: Path) -> None:
    hub.repos = {"acme/sft": {"main": model}}
    name = "model-00001-of-00002.safetensors"
    url, data = f"{hub.url}/acme/sft/resolve/main/{name}", (model / name).read_bytes()
    for asked_for, span in (("5-9", (5, 10)), ("300000-", (300_000, len(data))), ("-7", (len(data) - 7, len(data)))):
        status, body, headers = get(url, Range=f"bytes={asked_for}")
        assert (status, body) == (206, data[slice(*span)])
        assert headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
    status, _, headers = get(url, Range=f"bytes={len(data)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(data)}")
    assert get(url)[:2] == (200, data)
    assert get(f"{hub.url}/acme/sft/resolve/main/config.json", Range="bytes=1-1")[:2] == (206, b"}")


def test_faults(hub: Hub, model: Path) -> None:
    hub.repos = {"acme/sft": {"main": model}}
    name = "model-00001-of-00002.safetensors"
    url, data = f"{hub.url}/acme/sft/resolve/main/{name}", (model / name).read_bytes()

    def once(**what: Any) -> Fault:
        hub.faults = [Fault(r"GET /cdn/.*00001-of", **what)]
        return hub.faults[0]

    fault = once(status=429, retry_after=3, code="Busy", skip=1, times=2)
    answers = [get(url) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 429, 429, 200]
    assert answers[1][2]["Retry-After"] == "3"
    assert answers[1][2]["X-Error-Code"] == "Busy"
    assert fault.hits == [f"GET /cdn/acme/sft/resolve/{hub.commit('acme/sft', 'main')}/{name}"] * 2

    once(cut=1000)
    with pytest.raises(IncompleteRead) as cut:
        get(url)
    assert cut.value.partial == data[:1000]
    once(cut=1000, reset=True)
    with pytest.raises((ConnectionResetError, IncompleteRead)):
        get(url)
    once(short=1000)
    assert get(url)[:2] == (200, data[:1000])
    once(flip=1000)
    assert get(url)[1] == data[:1000] + bytes([data[1000] ^ 0xFF]) + data[1001:]
    once(ignore_range=True)
    assert get(url, Range="bytes=5-9")[:2] == (200, data)
    fault = once(stall=0.01)
    assert get(url)[1] == data
    assert len(fault.hits) == 1
    assert get(url)[1] == data


@WAYS
def test_the_client_overcomes_faults(
    hub: Hub, model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = client(hub.url, way, monkeypatch)
    api.create_repo("acme/merged")
    hub.faults = [
        Fault(r"POST .*/preupload/", status=500),
        Fault(r"PUT /lfs/", cut=1000, reset=True),
        Fault(r"PUT /lfs/", status=503),
        Fault(r"POST /xet/v1/xorbs/", status=500),
        Fault(r"GET /(cdn/.*00001|xet/fetch)", cut=1000),
    ]
    api.upload_folder(repo_id="acme/merged", folder_path=model)
    api.snapshot_download("acme/merged", local_dir=tmp_path / "back", cache_dir=tmp_path / "cache")
    assert contents(tmp_path / "back").items() >= contents(model).items()
    assert [len(fault.hits) for fault in hub.faults] == ([1, 0, 0, 1, 1] if way == "xet" else [1, 1, 1, 0, 1])


@WAYS
def test_an_answer_that_is_lost(hub: Hub, model: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = client(hub.url, way, monkeypatch)
    api.create_repo("acme/merged")
    hub.faults = [fault := Fault(r"POST .*/commit/main", cut=0)]
    if way == "xet":  # upload_folder's pipeline sends the commit again, on top of the first
        api.upload_folder(repo_id="acme/merged", folder_path=model, commit_message="weights")
        titles = ["weights", "weights", "initial commit"]
    else:
        with pytest.raises(Exception, match=r"disconnected|closed"):
            api.upload_folder(repo_id="acme/merged", folder_path=model, commit_message="weights")
        titles = ["weights", "initial commit"]
    assert fault.hits == ["POST /api/models/acme/merged/commit/main"]
    assert [commit.title for commit in api.list_repo_commits("acme/merged")] == titles
    assert contents(hub.folder("acme/merged", "main")).items() >= contents(model).items()


@WAYS
def test_killed_and_started_again(model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {"hf_good": {"name": "acme", "role": "write"}}
    with hub_process(tmp_path / "state", tokens=tokens) as hub:
        api = client(hub.url, way, monkeypatch, "hf_good")
        api.create_repo("acme/merged", private=True)
        done = api.upload_folder(repo_id="acme/merged", folder_path=model)
        url = hub.url
        hub.kill()
        with pytest.raises(Exception, match=r"[Cc]onnect"):
            api.model_info("acme/merged")
        hub.start()
        assert hub.url == url
        assert api.model_info("acme/merged").sha == done.oid
        assert api.model_info("acme/merged").private
        api.snapshot_download("acme/merged", local_dir=tmp_path / "back", cache_dir=tmp_path / "cache")
        assert contents(tmp_path / "back").items() >= contents(model).items()
        assert api.upload_folder(repo_id="acme/merged", folder_path=model).oid == done.oid
    with running_hub(tmp_path / "state") as again:
        assert again.commit("acme/merged", "main") == done.oid
