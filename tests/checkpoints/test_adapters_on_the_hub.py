"""Adapters by Hub id: fetched whole, pinned to their commits, streamed beside the network's tensors, named on the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.adapters import largest_difference, lora, save_adapter, save_model, small_llama, tensors
from tests.checkpoints.test_stream import run
from tests.hub import Hub

MERGE = "merge: {ratios: [0.7, 1]}\n"


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> Path:
    """A model, two revisions of an adapter on it, and the merge from folders: `local`."""
    model = save_model(tmp_path / "model", small_llama())
    for seed, name in enumerate(("one", "two"), 1):
        save_adapter(model, lora("q_proj", "down_proj", use_dora=True), tmp_path / name, seed=seed)
    hub.repos |= {
        "acme/sft": {"main": tmp_path / "model"},
        "acme/lora": {"main": tmp_path / "one", "v2": tmp_path / "two"},
    }
    near = "models: {sft: ./model, rlhf: {model: ./model, adapter: ./two}}\n"
    far = "models:\n  sft: acme/sft\n  rlhf: {model: acme/sft, adapter: acme/lora@v2}\n"
    (tmp_path / "near.yaml").write_text(near + MERGE)
    (tmp_path / "hub.yaml").write_text(far + MERGE)
    done = run(hub.url, "merge", "near.yaml", "local", cwd=tmp_path)
    assert done.code == 0, done.err
    return tmp_path


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_as_from_folders(hub: Hub, place: Path, how: tuple[str, ...]) -> None:
    planned = run(hub.url, "merge", "hub.yaml", "out", "--dry-run", *how, cwd=place)
    assert planned.code == 0, planned.err
    commit = hub.commit("acme/lora", "v2")
    assert f"with the adapter acme/lora@v2 ({commit[:12]}): on 4 tensors" in planned.out
    done = run(hub.url, "merge", "hub.yaml", "out", *how, cwd=place)
    assert done.code == 0, done.err
    assert (place / "out" / "model.safetensors").read_bytes() == (place / "local" / "model.safetensors").read_bytes()
    if how:
        assert [path.name for path in (place / "hf").rglob("*.safetensors")] == ["adapter_model.safetensors"]
    said = yaml.safe_load((place / "out" / "amatax_recipe.yaml").read_text())["models"]
    sft = f"acme/sft@{hub.commit('acme/sft', 'main')}"
    assert said == {"sft": sft, "rlhf": {"model": sft, "adapter": f"acme/lora@{commit}"}}
    record = json.loads((place / "out" / "amatax_record.json").read_text())["models"]["rlhf"]
    assert record["adapter"] == f"acme/lora@{commit}"
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < record["files"].keys()
    card = (place / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["acme/sft", "acme/lora"]
    assert f"- rlhf adapter: [acme/lora](https://huggingface.co/acme/lora) at `{commit}`" in card
    again = run(hub.url, "merge", "hub.yaml", "out", *how, cwd=place)
    assert again.out.startswith("out is finished already")
    verified = run(hub.url, "verify", "out", cwd=place)
    assert verified.code == 0, verified.err


def test_offline_afterwards(hub: Hub, place: Path) -> None:
    assert run(hub.url, "merge", "hub.yaml", "out", cwd=place).code == 0
    done = run(hub.url, "merge", "hub.yaml", "again", cwd=place, HF_HUB_OFFLINE="1")
    assert done.code == 0, done.err
    assert largest_difference(tensors(place / "out"), tensors(place / "again")) == 0


@pytest.mark.parametrize(
    ("adapter", "said"),
    [("acme/sft", "not an adapter"), ("acme/none", "acme/none"), ("acme/lora@v9", "v9")],
)
def test_what_is_no_adapter(hub: Hub, place: Path, adapter: str, said: str) -> None:
    (place / "r.yaml").write_text((place / "hub.yaml").read_text().replace("acme/lora@v2", adapter))
    done = run(hub.url, "merge", "r.yaml", "out", "--dry-run", cwd=place)
    assert done.code == 2
    assert said in done.err and "r.yaml:3 (models.rlhf.adapter)" in done.err and "  -> " in done.err


def test_an_adapter_given_as_a_model(hub: Hub, place: Path) -> None:
    (place / "r.yaml").write_text("models: {sft: acme/sft, rlhf: acme/lora}\n" + MERGE)
    done = run(hub.url, "merge", "r.yaml", "out", "--dry-run", cwd=place)
    assert done.code == 2
    assert "a LoRA adapter" in done.err and "adapter: THIS" in done.err


def test_inspect_shows_an_adapter_and_a_model_with_one(hub: Hub, place: Path) -> None:
    done = run(hub.url, "inspect", "acme/lora@v2", "--json", cwd=place)
    assert done.code == 0, done.err
    assert (done.json["adapter"], done.json["commit"]) == ("acme/lora@v2", hub.commit("acme/lora", "v2"))
    assert (done.json["rank"], done.json["dora"]) == (4, True)
    both = run(hub.url, "inspect", "hub.yaml", "--json", cwd=place)
    assert both.code == 0, both.err
    assert both.json["rlhf"]["adapter"] == done.json
    assert "adapter" not in both.json["sft"]
    assert not list((place / "hf").rglob("model*.safetensors")), "headers are enough"
