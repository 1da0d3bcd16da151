"""Several processes and the Hub: one downloads, all read; tensors are streamed by each; the first one pushes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_amatax
from tests.faults.breaking import assert_clear
from tests.hub import Hub, running_hub
from tests.ranked import each_rank

RECIPE = "models: {sft: acme/sft, rlhf: acme/rlhf}\nmerge: {ratios: [0.7, 0.4]}\noutput: {max_shard_size: 100KB}\n"


@pytest.fixture
def hub(siblings: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repos |= {"acme/sft": {"main": siblings / "sft"}, "acme/rlhf": {"main": siblings / "rlhf"}}
        (siblings / "near.yaml").write_text(RECIPE.replace("acme", "."))
        (siblings / "hub.yaml").write_text(RECIPE)
        assert run_amatax("merge", "near.yaml", "local", cwd=siblings).code == 0
        yield hub


def settings(hub: Hub, cache: Path) -> dict[str, str]:
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    return {**online, "HF_HOME": str(cache)}


def asked_for_weights(hub: Hub) -> int:
    """How often, since the last look; of a file's header or of the whole."""
    count = sum(method == "GET" and path.startswith("/cdn/") and "safetensors" in path for method, path in hub.requests)
    hub.requests.clear()
    return count


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_one_downloads_all_merge_and_the_first_pushes(hub: Hub, siblings: Path) -> None:
    env = settings(hub, siblings / "cache")
    assert run_amatax("merge", "hub.yaml", "--dry-run", cwd=siblings, env=env).code == 0
    headers = asked_for_weights(hub)
    assert run_amatax("merge", "hub.yaml", "alone", cwd=siblings, env=env).code == 0
    downloads = asked_for_weights(hub) - 2 * headers
    assert downloads > 2
    env, push = settings(hub, siblings / "hf"), ["--push", "acme/merged", "--private"]
    answers = each_rank(siblings, 2, "-m", "amatax", "merge", "hub.yaml", "out", *push, env=env)
    assert [a.code for a in answers] == [0, 0], answers
    assert answers[0].out.count("pushed to acme/merged") == 1 and answers[1].out + answers[1].err == ""
    assert asked_for_weights(hub) == 4 * headers + downloads  # each looks at the headers twice, and one takes the whole
    assert weights(siblings / "out") == weights(siblings / "local")
    assert weights(hub.folder("acme/merged", "main")) == weights(siblings / "local")


def test_all_stream_and_none_sends_shards_meanwhile(hub: Hub, siblings: Path) -> None:
    env = settings(hub, siblings / "hf")
    answers = each_rank(siblings, 2, "-m", "amatax", "merge", "hub.yaml", "out", "--stream", env=env)
    assert [a.code for a in answers] == [0, 0], answers
    assert weights(siblings / "out") == weights(siblings / "local")
    assert not list((siblings / "hf").rglob("*.safetensors"))
    more = ["--stream", "--push", "acme/merged"]
    answers = each_rank(siblings, 2, "-m", "amatax", "merge", "hub.yaml", "other", *more, env=env)
    assert [a.code for a in answers] == [2, 2]
    assert_clear(answers[0])
    assert "--stream" in answers[0].err and "one process" in answers[0].err and answers[1].err == ""
