"""Models by Hub id, through the real client: only what is needed, commits pinned, offline afterwards, refusals in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import Run, run_amatax
from tests.hub import Fault, Hub


@pytest.fixture
def recipe(hub: Hub, siblings: Path) -> Path:
    """A recipe over two repositories, which hold more than a merge needs."""
    (siblings / "rlhf" / "pytorch_model.bin").write_bytes(b"legacy, not needed")
    (siblings / "rlhf" / "training_args.bin").write_bytes(b"not needed")
    (siblings / "rlhf" / "runs").mkdir()
    (siblings / "rlhf" / "runs" / "events.out").write_bytes(b"not needed")
    (siblings / "sft" / "tokenizer_config.json").write_text("{}")
    (siblings / "sft" / "layers").mkdir()
    (siblings / "sft" / "layers" / "attention.py").write_text("never run")
    (siblings / "sft" / "USE_POLICY.md").write_text("no weapons")
    hub.repos = {
        "acme/sft": {"main": siblings / "sft"},
        "acme/rlhf": {"main": siblings / "sft", "v2": siblings / "rlhf"},
    }
    path = siblings / "hub.yaml"
    path.write_text("models: {sft: acme/sft, rlhf: acme/rlhf@v2}\nmerge: {ratios: [0.7, 0.4, 0.1]}\n")
    return path


def run(hub: Hub, *args: str | Path, cwd: Path, **env: str) -> Run:
    return run_amatax(
        *args,
        cwd=cwd,
        env={"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", **env},
    )


def test_merge_from_the_hub(hub: Hub, recipe: Path, siblings: Path) -> None:
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert done.code == 0, done.err
    assert run_amatax("merge", "recipe.yaml", "local", cwd=siblings).code == 0
    assert (siblings / "out" / "model.safetensors").read_bytes() == (
        siblings / "local" / "model.safetensors"
    ).read_bytes()

    assert {f.name for f in (siblings / "out").rglob("*")} == {f.name for f in (siblings / "local").rglob("*")}
    assert (siblings / "out" / "layers" / "attention.py").exists()

    fetched = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert any(path.endswith("model-00001-of-00003.safetensors") for path in fetched), fetched
    assert not [path for path in fetched if path.endswith((".bin", "events.out"))]

    recorded = yaml.safe_load((siblings / "out" / "amatax_recipe.yaml").read_text())
    assert recorded["models"]["rlhf"] == f"acme/rlhf@{hub.commit('acme/rlhf', 'v2')}"
    assert recorded["models"]["sft"] == f"acme/sft@{hub.commit('acme/sft', 'main')}"
    card = (siblings / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["acme/sft", "acme/rlhf"]
    assert front["base_model_relation"] == "merge"
    for file in (siblings / "out").rglob("*.*"):
        assert str(siblings).encode() not in file.read_bytes(), file

    again = run(hub, "verify", "out", cwd=siblings, HF_HUB_OFFLINE="1")
    assert again.code == 0, again.err
    offline = run(hub, "merge", "hub.yaml", "offline", cwd=siblings, HF_HUB_OFFLINE="1")
    assert offline.code == 0, offline.err


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((404, "RepoNotFound"), ["acme/rlhf", "does not exist", "hf auth login"]),
        ((401, ""), ["acme/rlhf", "hf auth login"]),
        ((403, "GatedRepo"), ["acme/rlhf", "gated", "hf auth login"]),
        ((500, ""), ["acme/rlhf"]),
    ],
)
def test_refusals(hub: Hub, recipe: Path, siblings: Path, refusal: tuple[int, str], words: list[str]) -> None:
    hub.refuse["acme/rlhf"] = refusal
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert done.code == 2, done.err
    assert all(word in done.err for word in [*words, "hub.yaml:1 (models.rlhf)", "->"]), done.err
    assert "Traceback" not in done.err


WEIGHTS = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("name", "fault", "more"),
    [
        (WEIGHTS, Fault(rf"GET /cdn/acme/rlhf.*{WEIGHTS}", skip=2, flip=5000), ()),  # the first two fetch headers
        ("config.json", Fault(r"GET /acme/rlhf/resolve/[^/]*/config.json", flip=20), ()),
        ("tokenizer.json", Fault(r"GET /(cdn/)?acme/rlhf.*tokenizer.json", flip=5000), ("--stream",)),
        ("tokenizer.json", Fault(r"GET /(cdn/)?acme/rlhf.*tokenizer.json", flip=5000), ()),
        ("pytorch_model.bin", Fault(r"GET /cdn/acme/rlhf.*pytorch_model.bin", flip=100_000), ()),
    ],
)
def test_other_bytes_than_the_hash_says(
    hub: Hub, recipe: Path, siblings: Path, name: str, fault: Fault, more: tuple[str, ...]
) -> None:
    """A download of the right size: it is noticed, removed, and comes again."""
    for role in ("sft", "rlhf"):
        (siblings / role / "tokenizer.json").write_text("{}" + " " * 100_000)
    recipe.write_text(recipe.read_text() + "output: {tokenizer: rlhf}\n")
    if name.endswith(".bin"):
        tensors: dict[str, torch.Tensor] = {}
        for file in (siblings / "rlhf").glob("model*.safetensors*"):
            tensors |= load_file(file) if file.suffix == ".safetensors" else {}
            file.unlink()
        torch.save(tensors, siblings / "rlhf" / name)
    hub.faults.append(fault)
    done = run(hub, "merge", recipe, "out", *more, cwd=siblings)
    assert fault.hits
    assert done.code == 2, done.out
    assert f"acme/rlhf: {name} arrived as other bytes than the Hub's hash says" in done.err
    assert "run the same command again" in done.err
    assert not (siblings / "out").exists()
    again = run(hub, "merge", recipe, "out", *more, cwd=siblings)
    assert again.code == 0, again.err
    assert not list((siblings / "hf").rglob("amatax-unchecked*"))


def test_what_an_interrupted_download_left_is_compared(hub: Hub, recipe: Path, siblings: Path) -> None:
    """One file arrives with another byte, the next one not at all: the first is not taken for good when the command is given again."""
    hub.faults = [
        Fault(rf"GET /cdn/acme/rlhf.*{WEIGHTS}", skip=2, flip=5000),
        Fault(r"GET /cdn/acme/rlhf.*model-00003-of-00003.safetensors", skip=2, times=1, status=403),
    ]
    broken = run(hub, "merge", recipe, "out", cwd=siblings)
    assert broken.code == 2, broken.out
    assert "other bytes" not in broken.err
    again = run(hub, "merge", recipe, "out", cwd=siblings)
    assert again.code == 2, again.out
    assert f"{WEIGHTS} arrived as other bytes" in again.err
    assert run(hub, "merge", recipe, "out", cwd=siblings).code == 0


def test_a_missing_revision(hub: Hub, recipe: Path, siblings: Path) -> None:
    recipe.write_text(recipe.read_text().replace("@v2", "@v3"))
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert done.code == 2
    assert "acme/rlhf: has no revision 'v3'" in done.err


def test_a_branch_that_moves_after_the_plan(hub: Hub, recipe: Path, siblings: Path) -> None:
    """What was planned is merged; the next run sees that the branch has moved."""
    planned = hub.commit("acme/sft", "main")
    hub.moves["acme/sft"] = {"main": siblings / "rlhf"}
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert done.code == 0, done.err
    assert f"acme/sft@{planned}" in (siblings / "out" / "amatax_recipe.yaml").read_text()
    again = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert again.code == 2
    assert "holds another model, or another merge" in again.err


def test_offline_and_not_cached(hub: Hub, recipe: Path, siblings: Path) -> None:
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings, HF_HUB_OFFLINE="1")
    assert done.code == 2
    assert "not in the local cache" in done.err


def test_no_network(hub: Hub, recipe: Path, siblings: Path) -> None:
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "acme/sft: is not in the local cache, and the Hub cannot be reached" in done.err
    assert "->" in done.err


def test_a_folder_without_its_dot_is_pointed_at(hub: Hub, siblings: Path) -> None:
    shutil.copytree(siblings / "sft", siblings / "acme" / "sft")
    (siblings / "r.yaml").write_text("models: {sft: acme/sft, rlhf: ./rlhf}\nmerge: {ratios: 0.5}\n")
    done = run(hub, "merge", "r.yaml", "out", cwd=siblings)
    assert done.code == 2
    assert "./acme/sft" in done.err
