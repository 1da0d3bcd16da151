"""merge --stream --push: shards go to the Hub as they are finished; neither side ever holds more than it should."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.forked import MERGING, forks
from tests.hub import Fault, Hub
from tests.publishing.conftest import WRITE, run


def shipped(hub: Hub, cwd: Path, *more: str, **env: str) -> Run:
    return run(hub, "merge", "hub.yaml", "--stream", "--push", "acme/shipped", "--threads", "1", *more, cwd=cwd, **env)


def no_weights_here(home: Path) -> bool:
    return not [p for p in home.rglob("*.safetensors") if not {"sft", "rlhf", "out"} & set(p.relative_to(home).parts)]


@pytest.mark.parametrize("xet", ["0", "1"])
def test_shards_go_to_the_hub_as_they_are_finished(hub: Hub, home: Path, xet: str) -> None:
    shutil.rmtree(home / "hf")
    done = shipped(hub, home, "--json", HF_HUB_DISABLE_XET=xet)
    assert done.code == 0, done.err
    assert done.json["pushed"]["commit"] == hub.commit("acme/shipped", "main")
    there = hub.folder("acme/shipped", "main")
    for path in (home / "out").iterdir():
        if path.name not in ("README.md", "amatax_recipe.yaml", "amatax_record.json"):
            assert (there / path.name).read_bytes() == path.read_bytes(), path
    assert not (home / "shipped").exists()
    assert not (home / "shipped.unfinished").exists()
    assert no_weights_here(home)
    assert set(hub.repos["acme/shipped"]) == {"main"}, "the branch stays"


def test_what_is_there_already_is_not_sent_again(hub: Hub, home: Path) -> None:
    """Also by a run that was stopped before it could remove its branch."""
    hub.faults = [Fault(r"DELETE .*/branch/", status=500, times=99)]
    assert shipped(hub, home).code == 0
    assert len(hub.repos["acme/shipped"]) == 2
    hub.faults, hub.requests[:] = [], []
    again = shipped(hub, home)
    assert again.code == 0, again.err
    assert "nothing was sent" in again.out
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path]
    assert set(hub.repos["acme/shipped"]) == {"main"}
    assert not (home / "shipped.unfinished").exists()

    (hub.folder("acme/shipped", "main") / "README.md").write_text("---\nlicense: mit\n---\nEdited by hand.")
    assert "nothing was sent" in shipped(hub, home).out
    (home / "hub.yaml").write_text((home / "hub.yaml").read_text().replace("0.7", "0.6"))
    assert "nothing was sent" not in shipped(hub, home).out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # the store may have the same file
    path.write_bytes(data)


def odd_record(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda there: (there / "model-00002-of-00005.safetensors").unlink(),
        lambda there: flip(there / "model-00002-of-00005.safetensors"),
        lambda there: (there / "config.json").write_text("{}"),
        lambda there: odd_record(there / "amatax_record.json", carried=[1]),
        lambda there: odd_record(there / "amatax_record.json", files="none"),
        lambda there: (there / "amatax_record.json").write_text("[" * 100_000),
    ],
)
def test_what_was_changed_there_is_made_again(hub: Hub, home: Path, harm: Callable[[Path], object]) -> None:
    assert shipped(hub, home).code == 0
    harm(hub.folder("acme/shipped", "main"))
    again = shipped(hub, home)
    assert again.code == 0, again.err
    assert "nothing was sent" not in again.out
    assert (hub.folder("acme/shipped", "main") / "config.json").read_bytes() == (home / "out/config.json").read_bytes()
    same_as_local(hub, home)


def test_another_models_weights_beside_what_is_there(hub: Hub, home: Path) -> None:
    assert shipped(hub, home).code == 0
    (hub.folder("acme/shipped", "main") / "pytorch_model.bin").write_bytes(b"other")
    refused = shipped(hub, home)
    assert refused.code == 2
    assert "holds files of another model (pytorch_model.bin)" in refused.err
    assert shipped(hub, home, "--replace").code == 0
    assert not (hub.folder("acme/shipped", "main") / "pytorch_model.bin").exists()


def test_what_an_earlier_run_left_here_goes_when_all_is_there(hub: Hub, home: Path) -> None:
    hub.faults = [Fault(r"POST .*/commit/main", status=500, times=999)]
    assert shipped(hub, home).code == 2
    assert (home / "shipped.unfinished").exists()
    hub.faults = []
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(home / "hub.yaml", elsewhere)
    assert shipped(hub, elsewhere).code == 0
    assert "nothing was sent" in shipped(hub, home).out
    assert not (home / "shipped.unfinished").exists()


def test_shards_into_a_pull_request(hub: Hub, home: Path) -> None:
    assert run(hub, "push", "out", "acme/shipped", cwd=home).code == 0
    before = hub.commit("acme/shipped", "main")
    (home / "hub.yaml").write_text((home / "hub.yaml").read_text().replace("0.7", "0.6"))
    done = shipped(hub, home, "--create-pr", "--json")
    assert done.code == 0, done.err
    assert "discussions" in done.json["pushed"]["url"]
    assert hub.commit("acme/shipped", "main") == before


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"GET /cdn/.*safetensors", skip=60, cut=0, times=999),  # on the reading side
        Fault(r"POST .*/commit/amatax-", skip=2, status=500, times=999),  # on the writing side
        Fault(r"POST .*/commit/main", status=500, times=999),  # at the last commit
    ],
)
def test_a_break_on_either_side(hub: Hub, home: Path, fault: Fault) -> None:
    hub.faults = [fault]
    broken = shipped(hub, home)
    assert broken.code == 2, broken.out
    assert "->" in broken.err
    assert fault.hits
    assert "acme/shipped" not in hub.repos or not (hub.folder("acme/shipped", "main") / "README.md").exists()
    hub.faults = []
    done = shipped(hub, home)
    assert done.code == 0, done.err
    resent = [line for line in done.err.splitlines() if line.startswith("sending ") and line in broken.err.splitlines()]
    assert len(resent) <= 1, done.err  # the one that was on its way
    same_as_local(hub, home)


def same_as_local(hub: Hub, home: Path) -> None:
    """What is on the Hub is what a merge on the disk gave."""
    for path in (home / "out").glob("*.safetensors"):
        assert (hub.folder("acme/shipped", "main") / path.name).read_bytes() == path.read_bytes()


def test_a_shard_travels_while_the_next_one_is_merged(hub: Hub, home: Path) -> None:
    """Between a shard's upload, which is slow, and its commit, tensors of the next one are read."""
    hub.faults = [Fault(r"PUT /lfs/", stall=2.0)]
    done = shipped(hub, home, HF_HUB_DISABLE_XET="1")
    assert done.code == 0, done.err
    asked = [f"{method} {path}" for method, path in hub.requests]
    begin = next(i for i, line in enumerate(asked) if line.startswith("PUT /lfs/"))
    end = next(i for i, line in enumerate(asked) if "POST" in line and "/commit/amatax-" in line)
    assert [line for line in asked[begin:end] if line.startswith("GET /cdn/") and line.endswith(".safetensors")]


def test_a_branch_that_cannot_be_removed(hub: Hub, home: Path) -> None:
    """The model is whole: that is no error."""
    hub.faults = [Fault(r"DELETE .*/branch/", status=500, times=99)]
    done = shipped(hub, home)
    assert done.code == 0, done.err
    assert (
        "stays (acme/shipped: the Hub has trouble of its own (500)): `hf repos branch delete acme/shipped amatax-"
        in done.out
    )
    assert (hub.folder("acme/shipped", "main") / "README.md").exists()


def test_an_upload_that_is_refused(hub: Hub, home: Path) -> None:
    """Of LFS, which wraps what the storage said; the shard that was merged meanwhile is kept."""
    hub.faults = [Fault(r"PUT /lfs/", skip=1, status=403, times=99)]
    broken = shipped(hub, home, HF_HUB_DISABLE_XET="1")
    assert broken.code == 2
    assert "may not write there" in broken.err
    assert "xet" not in broken.err
    hub.faults = []
    done = shipped(hub, home, HF_HUB_DISABLE_XET="1")
    assert done.code == 0, done.err
    assert "continuing: " in done.err
    same_as_local(hub, home)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_a_shard_travels(hub: Hub, home: Path, how: signal.Signals) -> None:
    hub.faults = [Fault(r"PUT /lfs/", skip=1, stall=3.0)]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITE}
    settings["HF_HUB_DISABLE_XET"] = "1"
    job = forks(*MERGING).start(home, "merge", "hub.yaml", "--stream", "--push", "acme/shipped", env=settings)
    while not job.ended() and not hub.faults[0].hits:
        time.sleep(0.01)
    job.send(how)
    stopped = job.wait()
    assert stopped.code == (130 if how == signal.SIGINT else -how), stopped.err
    hub.faults = []
    done = shipped(hub, home, HF_HUB_DISABLE_XET="1")
    assert done.code == 0, done.err
    assert "continuing: " in done.err
    same_as_local(hub, home)
    assert set(hub.repos["acme/shipped"]) == {"main"}
    assert not (home / "shipped.unfinished").exists()
