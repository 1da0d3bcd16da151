"""amatax push and merge --push, by the real client: what arrives, what is refused before any work, what a rerun does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.adapters import lora, save_adapter, save_model, small_llama
from tests.forked import MERGING, forks
from tests.hub import Fault, Hub
from tests.publishing.conftest import READ, WRITE, run


@pytest.mark.parametrize("xet", ["0", "1"])
def test_what_is_pushed_comes_back_the_same(hub: Hub, home: Path, xet: str) -> None:
    done = run(hub, "push", "out", "acme/merged", "--json", cwd=home, HF_HUB_DISABLE_XET=xet)
    assert done.code == 0, done.err
    there = hub.folder("acme/merged", "main")
    assert done.json["commit"] == hub.commit("acme/merged", "main")
    names = {str(p.relative_to(home / "out")) for p in (home / "out").rglob("*") if p.is_file()}
    arrived = {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()} - {".gitattributes"}
    assert arrived == names | {"amatax_ratios.png"}
    for name in names - {"README.md", "amatax_recipe.yaml", "amatax_record.json"}:
        assert (there / name).read_bytes() == (home / "out" / name).read_bytes(), name
    for path in there.rglob("*"):
        if path.is_file():
            assert str(home).encode() not in path.read_bytes(), path

    code = (
        "import sys, torch, transformers; load = transformers.AutoModelForCausalLM.from_pretrained\n"
        "one, other = (load(p, dtype='auto').state_dict() for p in ('acme/merged', 'out'))\n"
        "assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)\n"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "other"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": xet,
    }
    pulled = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env={**env, "HF_TOKEN": ""}, capture_output=True, text=True
    )
    assert pulled.returncode == 0, pulled.stderr[-2000:]

    shutil.copytree(there, home / "pulled")
    (home / "pulled" / ".gitattributes").unlink(missing_ok=True)
    assert run(hub, "verify", "pulled", cwd=home).code == 0
    again = run(hub, "merge", "pulled/amatax_recipe.yaml", "again", cwd=home)
    assert again.code == 0, again.err
    for path in (home / "out").glob("*.safetensors"):
        assert (home / "again" / path.name).read_bytes() == path.read_bytes()

    commits = len(hub.requests)
    repeated = run(hub, "push", "out", "acme/merged", "--json", cwd=home, HF_HUB_DISABLE_XET=xet)
    assert repeated.code == 0, repeated.err
    assert repeated.json["commit"] == done.json["commit"]
    assert not [path for _, path in hub.requests[commits:] if "/commit/" in path]


def test_the_card(hub: Hub, home: Path) -> None:
    assert run(hub, "push", "out", "acme/merged", "--quiet", cwd=home).out == ""
    text = (hub.folder("acme/merged", "main") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == ["acme/sft", "acme/rlhf"]
    assert front["base_model_relation"] == "merge"
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en"]
    assert front["datasets"] == ["acme/sft-data", "acme/rlhf-data"]
    assert f"at `{hub.commit('acme/rlhf', 'v2')}`" in text
    assert "check this" in text
    assert "amatax_ratios.png" in text


def test_what_a_fit_measured_is_on_the_card(hub: Hub, home: Path) -> None:
    from huggingface_hub import ModelCard

    nll = {"held_out": {"uniform": 0.4, "fitted": 0.3, "gain": [-0.1, -0.2, -0.05]}}
    fit = {"alpha": 0.4, "data": {"fitted": 320, "held_out": 80}, "nll": nll, "verdict": "better"}
    recipe = yaml.safe_load((home / "hub.yaml").read_text())
    (home / "fitted.yaml").write_text(yaml.safe_dump({**recipe, "record": {"fit": fit}}))
    done = run(hub, "merge", "fitted.yaml", "fitted", "--push", "acme/fitted", cwd=home)
    assert done.code == 0, done.err
    card = ModelCard.load(hub.folder("acme/fitted", "main") / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("nll", 0.3)
    assert "| held out | 0.4000 | 0.3000 | -0.1000 (-0.2000 to -0.0500) |" in card.text


def test_what_hf_download_brings_is_not_the_models(hub: Hub, home: Path) -> None:
    """A published merge, downloaded to a folder, can be pushed on."""
    assert run(hub, "push", "out", "acme/merged", cwd=home).code == 0
    shutil.copytree(hub.folder("acme/merged", "main"), home / "down")
    (home / "down" / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (home / "down" / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("")
    done = run(hub, "push", "down", "acme/again", cwd=home)
    assert done.code == 0, done.err
    assert not [path for path in hub.folder("acme/again", "main").rglob("*") if "cache" in str(path.name)]
    assert (hub.folder("acme/merged", "main") / "model-00001-of-00005.safetensors").read_bytes() == (
        hub.folder("acme/again", "main") / "model-00001-of-00005.safetensors"
    ).read_bytes()


def test_merge_and_push_in_one(hub: Hub, home: Path) -> None:
    done = run(hub, "merge", "hub.yaml", "two", "--push", "acme/two", "--private", "--json", cwd=home)
    assert done.code == 0, done.err
    assert done.json["pushed"]["commit"] == hub.commit("acme/two", "main")
    assert "acme/two" in hub.private
    assert run(hub, "merge", "hub.yaml", "two", "--private", cwd=home).code == 2


def test_a_branch_and_a_pull_request(hub: Hub, home: Path) -> None:
    assert run(hub, "push", "out", "acme/merged", cwd=home).code == 0
    before = hub.commit("acme/merged", "main")
    (home / "hub.yaml").write_text((home / "hub.yaml").read_text().replace("0.7", "0.6"))
    assert run(hub, "merge", "hub.yaml", "other", cwd=home).code == 0
    done = run(
        hub, "push", "other", "acme/merged", "--revision", "other", "--commit-message", "less at the input", cwd=home
    )
    assert done.code == 0, done.err
    asked = run(hub, "push", "other", "acme/merged", "--create-pr", "--json", cwd=home)
    assert asked.code == 0, asked.err
    assert "discussions" in asked.json["url"]
    assert hub.commit("acme/merged", "main") == before
    shard = next((home / "other").glob("*.safetensors"))
    for revision in ("other", asked.json["commit"]):
        assert (hub.folder("acme/merged", revision) / shard.name).read_bytes() == shard.read_bytes()


def test_files_of_another_model(hub: Hub, home: Path) -> None:
    """Old weights beside new ones would be loaded with them."""
    assert run(hub, "push", "out", "acme/merged", cwd=home).code == 0
    (home / "hub.yaml").write_text((home / "hub.yaml").read_text().replace("100KB", "5GB"))
    assert run(hub, "merge", "hub.yaml", "one", cwd=home).code == 0
    done = run(hub, "push", "one", "acme/merged", cwd=home)
    assert done.code == 2
    assert "acme/merged holds files of another model (model-00001-of-" in done.err
    assert "--replace" in done.err
    assert run(hub, "push", "one", "acme/merged", "--replace", cwd=home).code == 0
    left = {path.name for path in hub.folder("acme/merged", "main").iterdir() if path.suffix == ".safetensors"}
    assert left == {"model.safetensors"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("rm out/tokenizer.json out/config.json", "config.json is gone"),
        ("echo '{}' > out/config.json", "config.json: changed since the merge ended"),
        ("touch out/secrets.txt", "secrets.txt was not there when the merge ended"),
        ("ln -s /etc/passwd out/extra", "extra was not there when the merge ended"),
        (
            "mv out out.unfinished; mkdir out; mv out.unfinished/* out; rm out/amatax_record.json",
            "not a finished merge",
        ),
        (
            "for f in out/*00001*; do printf x | dd of=$f bs=1 seek=90000 conv=notrunc 2>/dev/null; done",
            "is not what was written",
        ),
        ("for f in out/*00001*; do truncate -s -1 $f; done", "bytes long"),
    ],
)
def test_a_folder_that_is_not_the_merge(hub: Hub, home: Path, spoil: str, said: str) -> None:
    subprocess.run(spoil, shell=True, cwd=home, check=False)
    done = run(hub, "push", "out", "acme/merged", cwd=home)
    assert done.code == 2
    assert said in done.err
    assert "->" in done.err
    assert "acme/merged" not in hub.repos


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        ("", "acme/merged", "nobody is logged in"),
        ("hf_wrong", "acme/merged", "hf auth login"),
        (READ, "acme/merged", "may only read"),
        (WRITE, "other/merged", "may not write there"),
        (WRITE, "acme/bad//name", "is no Hub id"),
        (WRITE, "acme/-bad-", "is no Hub id"),
        (WRITE, "merged!", "is no Hub id"),
        (WRITE, "merged", "name it owner/merged"),
    ],
)
def test_refused(hub: Hub, home: Path, token: str, repo: str, said: str) -> None:
    done = run(hub, "push", "out", repo, cwd=home, HF_TOKEN=token)
    assert done.code == 2
    assert said in done.err, done.err
    assert "->" in done.err
    merged = run(hub, "merge", "hub.yaml", "late", "--push", repo, cwd=home, HF_TOKEN=token)
    assert merged.code == 2
    if repo != "other/merged":  # who may write where shows when it is written
        assert not (home / "late").exists(), "found out after the work"


@pytest.mark.parametrize("restricted", ["gated", "private"])
def test_restricted_inputs(hub: Hub, home: Path, restricted: str) -> None:
    if restricted == "gated":
        hub.gated["acme/sft"] = "auto"
        hub.granted.add(WRITE)
    else:
        hub.private.add("acme/sft")
    done = run(hub, "push", "out", "acme/merged", cwd=home)
    assert done.code == 2
    assert f"sft (acme/sft) is {restricted}" in done.err
    assert "acme/merged" not in hub.repos
    assert run(hub, "push", "out", "acme/hidden", "--private", cwd=home).code == 0
    told = run(hub, "push", "out", "acme/merged", "--allow-restricted", cwd=home)
    assert told.code == 0, told.err
    assert "as you asked" in told.out


def test_the_network_goes_away(hub: Hub, home: Path) -> None:
    hub.faults = [Fault(r"POST .*/commit/", status=503, times=99)]
    done = run(hub, "push", "out", "acme/merged", cwd=home)
    assert done.code == 2
    assert "the Hub has trouble of its own (503)" in done.err
    hub.faults = []
    assert run(hub, "push", "out", "acme/merged", cwd=home).code == 0


def test_offline(hub: Hub, home: Path) -> None:
    done = run(hub, "push", "out", "acme/merged", cwd=home, HF_HUB_OFFLINE="1")
    assert done.code == 2
    assert "offline mode is on" in done.err


def test_local_inputs_leave_no_path(hub: Hub, siblings: Path) -> None:
    for role in ("sft", "rlhf"):
        front = "license: mit\nlicense_link: file:///home/alice/LICENSE\ndatasets: [/home/alice/d.jsonl, acme/data]\n"
        (siblings / role / "README.md").write_text(f"---\n{front}---\n")
        config = json.loads((siblings / role / "config.json").read_text())
        (siblings / role / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/alice/llama"}))
        (siblings / role / "tokenizer_config.json").write_text(json.dumps({"name_or_path": str(siblings)}))
    assert run(hub, "merge", "recipe.yaml", "out", cwd=siblings).code == 0
    done = run(hub, "push", "out", "acme/merged", cwd=siblings)
    assert done.code == 0, done.err
    assert "sft and rlhf came from local folders" in done.out
    for path in hub.folder("acme/merged", "main").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"/home/alice" not in data and str(siblings).encode() not in data, path
    assert "_name_or_path" in (siblings / "out" / "config.json").read_text()
    assert yaml.safe_load((hub.folder("acme/merged", "main") / "README.md").read_text().split("---")[1])[
        "datasets"
    ] == ["acme/data"]


def test_verify_before_a_push(hub: Hub, home: Path) -> None:
    """A folder that is as recorded, but not what its recipe gives."""
    recipe, record = home / "out" / "amatax_recipe.yaml", home / "out" / "amatax_record.json"
    recipe.write_text(recipe.read_text().replace("0.7", "0.6"))
    known = json.loads(record.read_text())
    known["files"]["amatax_recipe.yaml"] = hashlib.sha256(recipe.read_bytes()).hexdigest()
    record.write_text(json.dumps(known))
    done = run(hub, "push", "out", "acme/merged", "--verify", cwd=home)
    assert done.code == 2
    assert "not what its recipe gives" in done.err
    assert "acme/merged" not in hub.repos


@pytest.mark.parametrize("change", ["size", "sha256", "gone"])
def test_something_else_arrives(hub: Hub, home: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = hub.entry

    def other(folder: Path, path: str) -> dict[str, Any]:
        found = entry(folder, path)
        if path == "model-00002-of-00005.safetensors":
            if change == "gone":
                return {**found, "path": "elsewhere.txt"}
            found = (
                {**found, "size": found["size"] + 1}
                if change == "size"
                else {**found, "lfs": {**found["lfs"], "oid": "0" * 64}}
            )
        return found

    monkeypatch.setattr(hub, "entry", other)
    done = run(hub, "push", "out", "acme/merged", cwd=home)
    assert done.code == 2
    assert (
        "model-00002-of-00005.safetensors " + ("did not arrive" if change == "gone" else "arrived as another")
        in done.err
    )


def test_a_file_that_changes_during_the_push(hub: Hub, home: Path) -> None:
    hub.faults = [Fault(r"POST /api/repos/create", stall=2.0)]
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITE}
    job = forks(*MERGING).start(home, "push", "out", "acme/merged", env=env)
    while not hub.faults[0].hits:
        assert not job.ended()
        time.sleep(0.02)
    shard = home / "out" / "model-00002-of-00005.safetensors"
    with shard.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"other")
    done = job.wait()
    assert done.code == 2
    assert "is not what was written" in done.err


def test_private_is_not_public(hub: Hub, home: Path) -> None:
    assert run(hub, "push", "out", "acme/open", cwd=home).code == 0
    done = run(hub, "push", "out", "acme/open", "--private", cwd=home)
    assert done.code == 2
    assert "acme/open exists, and is open to everybody" in done.err


@pytest.mark.parametrize("token", ["hf_secr\u00e9t", "hf_two words", " "])
def test_what_is_no_token(hub: Hub, home: Path, token: str) -> None:
    done = run(hub, "push", "out", "acme/merged", "--token", token, cwd=home)
    assert done.code == 2
    assert "this is no token" in done.err
    assert not token.strip() or token.strip() not in done.err


def test_a_token_with_a_line_end(hub: Hub, home: Path) -> None:
    assert run(hub, "push", "out", "acme/merged", "--token", f"{WRITE}\r\n", cwd=home, HF_TOKEN="").code == 0


def test_a_passing_trouble_is_waited_for(hub: Hub, home: Path) -> None:
    hub.faults = [Fault(r"GET /api/whoami", status=503), Fault(r"GET /api/models/acme/merged", status=429)]
    assert run(hub, "push", "out", "acme/merged", cwd=home).code == 0


def test_quiet_is_quiet(hub: Hub, home: Path) -> None:
    for _ in range(2):
        done = run(hub, "push", "out", "acme/merged", "--quiet", cwd=home)
        assert (done.code, done.out, done.err) == (0, "", "")


def test_a_local_adapter_leaves_no_path(hub: Hub, tmp_path: Path) -> None:
    """The published recipe names it beside its model; the record and the card name neither's folder."""
    model = save_model(tmp_path / "model", small_llama())
    save_adapter(model, lora("q_proj"), tmp_path / "lora")
    hub.repos |= {"acme/sft": {"main": tmp_path / "model"}}
    recipe = "models: {sft: acme/sft, rlhf: {model: acme/sft, adapter: ./lora}}\nmerge: {ratios: 0.5}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    merged = run(hub, "merge", "recipe.yaml", "out", cwd=tmp_path)
    assert merged.code == 0, merged.err
    done = run(hub, "push", "out", "acme/merged", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "rlhf adapter came from local folders" in done.out
    there = hub.folder("acme/merged", "main")
    for path in there.rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path
    said = yaml.safe_load((there / "amatax_recipe.yaml").read_text())["models"]["rlhf"]
    assert said["adapter"] == "./rlhf-adapter" and said["model"].startswith("acme/sft@")
    record = json.loads((there / "amatax_record.json").read_text())["models"]["rlhf"]
    assert record["adapter"] == "./rlhf-adapter" and record["ref"].startswith("acme/sft@")
    assert "- rlhf adapter: a local folder" in (there / "README.md").read_text()
