"""A finished merge of two repositories on a stand-in Hub that knows who may write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import Run, run_amatax
from tests.hub import Hub, running_hub

WRITE, READ = "hf_a_token_that_may_write", "hf_a_token_that_may_read"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.tokens = {WRITE: {"name": "acme", "role": "write", "orgs": []}, READ: {"name": "acme", "role": "read"}}
        yield hub


@pytest.fixture(scope="module")
def merged(llama_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out`, merged from two repositories in five shards, once for all tests."""
    home = tmp_path_factory.mktemp("merged")
    for role, licence in (("sft", "apache-2.0"), ("rlhf", "mit")):
        shutil.copytree(llama_family / role, home / role)
        front = {"license": licence, "language": "en", "datasets": [f"acme/{role}-data"]}
        (home / role / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# {role}\n")
    recipe = "models: {sft: acme/sft, rlhf: acme/rlhf@v2}\nmerge: {ratios: [0.7, 0.4, 0.1]}\n"
    (home / "hub.yaml").write_text(recipe + "output: {max_shard_size: 100KB}\n")
    with running_hub() as hub:
        fill(hub, home)
        done = run(hub, "merge", "hub.yaml", "out", cwd=home)
    assert done.code == 0, done.err
    return home


@pytest.fixture
def home(merged: Path, tmp_path: Path, hub: Hub) -> Path:
    """A copy of that folder that a test may change, and the repositories on its Hub."""
    shutil.copytree(merged, tmp_path / "home", symlinks=True)
    fill(hub, tmp_path / "home")
    return tmp_path / "home"


def fill(hub: Hub, home: Path) -> None:
    """The two repositories."""
    hub.repos |= {"acme/sft": {"main": home / "sft"}, "acme/rlhf": {"v2": home / "rlhf", "main": home / "sft"}}


def run(hub: Hub, *args: str | Path, cwd: Path, **env: str) -> Run:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITE}
    done = run_amatax(*args, cwd=cwd, env={**settings, **env})
    for token in (WRITE, READ):
        assert token not in done.out + done.err
    assert "Traceback" not in done.err
    return done
