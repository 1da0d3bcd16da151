"""amatax merge --stream: tensors over the network into the merge, the same bytes as a local one, whatever the network does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import Run, run_amatax
from tests.forked import MERGING, forks
from tests.hub import Fault, Hub, hub_process


@pytest.fixture
def recipe(hub: Hub, siblings: Path) -> Path:
    """A recipe over two repositories, and `local`, what it gives."""
    hub.repos |= {"acme/sft": {"main": siblings / "sft"}, "acme/rlhf": {"main": siblings / "rlhf"}}
    (siblings / "sft" / "tokenizer_config.json").write_text("{}")
    merge = "merge: {ratios: {blocks: [0.7, 0.4, 0.1], embeddings: 0, norms: 1}}\noutput: {max_shard_size: 100KB}\n"
    (siblings / "near.yaml").write_text(f"models: {{sft: ./sft, rlhf: ./rlhf}}\n{merge}")
    path = siblings / "hub.yaml"
    path.write_text(f"models: {{sft: acme/sft, rlhf: acme/rlhf}}\n{merge}")
    assert run_amatax("merge", "near.yaml", "local", cwd=siblings).code == 0
    return path


def run(url: str, *args: str | Path, cwd: Path, **env: str) -> Run:
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    done = run_amatax(*args, cwd=cwd, env={**settings, **env})
    assert "Traceback" not in done.err
    return done


def assert_same_weights(one: Path, other: Path) -> None:
    names = {path.name for path in one.iterdir() if path.suffix == ".safetensors"}
    assert names == {path.name for path in other.iterdir() if path.suffix == ".safetensors"}
    for name in [*names, "config.json", "tokenizer_config.json"]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def no_weights_cached(home: Path) -> bool:
    return not list((home / "hf").rglob("*.safetensors"))


@pytest.mark.parametrize("threads", ["1", "5"])
def test_a_streamed_merge_is_the_local_one(hub: Hub, recipe: Path, siblings: Path, threads: str) -> None:
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", "--threads", threads, cwd=siblings)
    assert done.code == 0, done.err
    assert_same_weights(siblings / "out", siblings / "local")
    assert no_weights_cached(siblings)
    again = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert again.out.startswith("out is finished already")
    verified = run(hub.url, "verify", "out", cwd=siblings)
    assert verified.code == 0, verified.err


def test_no_token_goes_to_the_storage(hub: Hub, recipe: Path, siblings: Path) -> None:
    """The stand-in's storage answers 400 to a request with an Authorization."""
    hub.tokens = {"hf_reader": {"name": "acme", "role": "read"}}
    hub.private |= {"acme/sft", "acme/rlhf"}
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings, HF_TOKEN="hf_reader")
    assert done.code == 0, done.err
    assert "hf_reader" not in done.out + done.err
    for path in (siblings / "out").rglob("*"):
        assert not path.is_file() or b"hf_reader" not in path.read_bytes()


WEIGHTS = r"GET /cdn/.*safetensors"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(WEIGHTS, skip=6, cut=1000, times=3),
        Fault(WEIGHTS, skip=6, cut=1000, reset=True, times=3),
        Fault(WEIGHTS, skip=6, cut=0, times=2),
        Fault(WEIGHTS, skip=6, short=777, times=3),
        Fault(WEIGHTS, skip=6, status=503, times=1),
        Fault(WEIGHTS, skip=6, status=429, retry_after=0, times=1),
        Fault(WEIGHTS, skip=20, status=403, times=1),  # a link whose time is over: the Hub is asked for another
    ],
)
def test_a_network_that_stumbles(hub: Hub, recipe: Path, siblings: Path, fault: Fault) -> None:
    hub.faults = [fault]
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert done.code == 0, done.err
    assert fault.hits
    assert_same_weights(siblings / "out", siblings / "local")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(WEIGHTS, skip=6, cut=0, times=999), "the Hub stopped sending model"),
        (Fault(WEIGHTS, skip=6, ignore_range=True, times=999), "the server sent no part of model"),
        (Fault(r"GET .*/model.*safetensors", skip=8, status=403, times=999), "access was refused"),
    ],
)
def test_a_network_that_is_gone(hub: Hub, recipe: Path, siblings: Path, fault: Fault, said: str) -> None:
    hub.faults = [fault]
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert done.code == 2, done.out
    assert said in done.err, done.err
    assert "->" in done.err
    assert not (siblings / "out").exists()
    hub.faults = []
    assert run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings).code == 0
    assert_same_weights(siblings / "out", siblings / "local")


def test_a_killed_streamed_merge_continues(recipe: Path, siblings: Path, hub: Hub) -> None:
    hub.faults = [Fault(WEIGHTS, skip=30, stall=0.5, times=999)]
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(siblings / "hf"), "HF_HUB_OFFLINE": "0"}
    job = forks(*MERGING).start(siblings, "merge", "hub.yaml", "out", "--stream", "--threads", "1", env=env)
    journal = siblings / "out.unfinished" / ".amatax" / "journal.jsonl"
    while not job.ended() and not (journal.exists() and len(journal.read_text().splitlines()) > 1):
        time.sleep(0.02)
    job.send(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    hub.faults = []
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert done.code == 0, done.err
    assert re.search(r"continuing: [1-9]", done.err)
    assert_same_weights(siblings / "out", siblings / "local")


@pytest.mark.parametrize("first", ["--stream", "--quiet"])
def test_a_merge_continues_the_other_way(recipe: Path, siblings: Path, hub: Hub, first: str) -> None:
    """A commit's files are the same, streamed or downloaded."""
    if first == "--quiet":
        assert run(hub.url, "merge", "hub.yaml", "warm", cwd=siblings).code == 0
    record = siblings / "out.unfinished" / ".amatax" / "journal.jsonl"
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(siblings / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    (siblings / "two.py").write_text(
        "import os, sys, amatax.writing.workplace as w; n = [0]; finish = w.Workplace.finish_shard\n"
        "def two(*a):\n    finish(*a); n[0] += 1\n    if n[0] == 2: os._exit(9)\n"
        "w.Workplace.finish_shard = two; sys.argv = ['amatax', 'merge', 'hub.yaml', 'out', sys.argv[1]]\n"
        "from amatax.__main__ import main; main()\n"
    )
    assert forks(*MERGING).python(siblings, "two.py", first, env=env).wait().code == 9
    assert len(record.read_text().splitlines()) == 3
    other = "--stream" if first == "--quiet" else "--allow-nonfinite"  # an option that changes nothing here
    done = run(hub.url, "merge", "hub.yaml", "out", other, cwd=siblings)
    assert done.code == 0, done.err
    assert "continuing: 2 of" in done.err
    assert_same_weights(siblings / "out", siblings / "local")


def test_a_hub_that_is_killed_and_comes_back(recipe: Path, siblings: Path, tmp_path: Path) -> None:
    with hub_process(tmp_path / "state") as server:
        for role in ("sft", "rlhf"):
            code = (
                "import sys, huggingface_hub as h; api = h.HfApi(token='x')\n"
                f"api.create_repo('acme/{role}'); api.upload_folder(repo_id='acme/{role}', folder_path='{role}')"
            )
            env = {
                **os.environ,
                "HF_ENDPOINT": server.url,
                "HF_HOME": str(siblings / "hf"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
            }
            subprocess.run([sys.executable, "-c", code], cwd=siblings, env=env, check=True, capture_output=True)
        server.kill()
        server.faults = [Fault(WEIGHTS, skip=10, stall=1.0, times=999)]
        server.start()
        job = forks(*MERGING).start(siblings, "merge", "hub.yaml", "out", "--stream", "--threads", "1", env=env)
        while not job.ended() and not (siblings / "out.unfinished").exists():
            time.sleep(0.02)
        server.kill()
        server.faults = []
        server.start()
        assert (done := job.wait()).code == 0, done.err
    assert_same_weights(siblings / "out", siblings / "local")


def test_verify_sees_what_a_stream_cannot(hub: Hub, recipe: Path, siblings: Path) -> None:
    """A stream with another byte of a tensor: verify downloads, compared with the Hub's hash, and merges again."""
    fault = Fault(r"GET /cdn/acme/rlhf.*safetensors", skip=6, flip=2)
    hub.faults = [fault]
    assert run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings).code == 0
    assert fault.hits
    hub.faults = []
    done = run(hub.url, "verify", "out", cwd=siblings)
    assert done.code != 0, done.out


def test_a_tensor_that_is_not_finite_is_named_by_its_repository(hub: Hub, recipe: Path, siblings: Path) -> None:
    file = siblings / "rlhf" / "model.safetensors"
    file = file if file.exists() else sorted((siblings / "rlhf").glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = next(name for name in tensors if "proj" in name)
    tensors[name][1, 2] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    done = run(hub.url, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert done.code == 2
    assert f"acme/rlhf@{hub.commit('acme/rlhf', 'main')[:12]}: {file.name}: {name!r} of rlhf holds nan" in done.err
    assert str(siblings) not in done.err
