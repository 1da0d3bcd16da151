"""Plans from the Hub's headers: everything is checked, no weight is fetched, and the plan is that of the downloaded files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amatax.checkpoints.downloads import Download, check_room
from amatax.errors import HubError
from tests.conftest import Run, run_amatax
from tests.disks import small_disk
from tests.hub import Fault, Hub


@pytest.fixture
def recipe(hub: Hub, siblings: Path) -> Path:
    (siblings / "sft" / "tokenizer.json").write_text("{}" + " " * 100_000)
    (siblings / "rlhf" / "tokenizer.json").write_text("{}")
    hub.repos |= {"acme/sft": {"main": siblings / "sft"}, "acme/rlhf": {"main": siblings / "rlhf"}}
    path = siblings / "hub.yaml"
    path.write_text("models: {sft: acme/sft, rlhf: acme/rlhf}\nmerge: {ratios: [0.7, 0.4, 0.1]}\n")
    return path


def run(hub: Hub, *args: str | Path, cwd: Path, **env: str) -> Run:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    done = run_amatax(*args, cwd=cwd, env={**settings, **env})
    assert "Traceback" not in done.err
    return done


def cached(home: Path) -> set[str]:
    """The names of the files in huggingface_hub's cache."""
    return {path.name for path in (home / "hf" / "hub").glob("models--*/snapshots/*/*")}


def test_a_plan_fetches_no_weight(hub: Hub, recipe: Path, siblings: Path) -> None:
    far = run(hub, "merge", "hub.yaml", "out", "--dry-run", "--json", cwd=siblings)
    assert far.code == 0, far.err
    assert cached(siblings) == {"config.json", "model.safetensors.index.json"}
    assert 0 < hub.sent < 300_000, "of 4 files, each with one range of 64 kB at most"
    assert any("tokenizer.json" in note for note in far.json["notes"])
    assert not [path for _, path in hub.requests if path.endswith("tokenizer.json")]
    assert run(hub, "merge", "hub.yaml", "out", cwd=siblings).code == 0
    near = run(hub, "merge", "hub.yaml", "out", "--dry-run", "--json", cwd=siblings, HF_HUB_OFFLINE="1")
    assert near.code == 0, near.err
    assert far.json["fetches"] > 0
    own = ("state", "fetches")
    one, other = ({key: value for key, value in plan.json.items() if key not in own} for plan in (far, near))
    assert one == other

    before = len(hub.requests)
    assert run(hub, "merge", "hub.yaml", "out", cwd=siblings).out.startswith("out is finished already")
    assert not [path for _, path in hub.requests[before:] if path.endswith("tokenizer.json")]


def test_inspect_reads_headers_alone(hub: Hub, recipe: Path, siblings: Path) -> None:
    far = run(hub, "inspect", "acme/rlhf", "--json", cwd=siblings)
    assert far.code == 0, far.err
    assert not [name for name in cached(siblings) if name.endswith(".safetensors")]
    near = run(hub, "inspect", "rlhf", "--json", cwd=siblings)
    assert far.json["tensors"] == near.json["tensors"]
    apart = run(hub, "inspect", "acme/sft", "acme/rlhf", "--json", cwd=siblings)
    assert apart.code == 0, apart.err
    here = run(hub, "inspect", "sft", "rlhf", "--json", cwd=siblings)
    assert {**apart.json, "model": ""} == {**here.json, "model": ""}


def test_all_faults_before_a_download(hub: Hub, recipe: Path, siblings: Path) -> None:
    tensors = load_file(siblings / "sft" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = torch.zeros(3, 4)
    save_file(tensors, siblings / "sft" / "model.safetensors", {"format": "pt"})
    recipe.write_text(recipe.read_text().replace("0.1]", "0.1, 1, 1, 1, 1]"))
    done = run(hub, "merge", "hub.yaml", "out", cwd=siblings)
    assert done.code == 2
    assert "1 tensors have other shapes" in done.err
    assert "7 ratios for a model of" in done.err
    assert not [name for name in cached(siblings) if name.endswith(".safetensors")]


def test_a_long_header_takes_a_second_range(hub: Hub, recipe: Path, siblings: Path) -> None:
    config = siblings / "sft" / "config.json"
    tensors = {f"model.layers.{i}.mlp.experts.{j}.up_proj.weight": torch.zeros(1) for i in range(4) for j in range(300)}
    for role in ("sft", "rlhf"):
        (siblings / role / "config.json").write_text(config.read_text())
        for path in (siblings / role).glob("model*"):
            path.unlink()
        save_file(tensors, siblings / role / "model.safetensors", {"format": "pt"})
    assert (siblings / "sft" / "model.safetensors").stat().st_size > 1 << 16
    done = run(hub, "inspect", "acme/sft", "--json", cwd=siblings)
    assert done.code == 0, done.err
    assert len(done.json["tensors"]) == 1200 or done.json["tensors"] == 1200


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(r"GET .*00002-of.*safetensors", ignore_range=True, times=99),
            "the server sent no part of model-00002-of",
        ),
        (Fault(r"GET .*00002-of.*safetensors", short=5, times=99), "instead of"),
        (
            Fault(r"GET .*00002-of.*safetensors", cut=5, times=99),
            "sent 5 bytes of model-00002-of-00003.safetensors instead of",
        ),
        (Fault(r"GET .*00002-of.*safetensors", flip=3, times=99), "model-00002-of"),
        (Fault(r"GET .*00002-of.*safetensors", flip=100, times=99), "model-00002-of"),
        (Fault(r"GET .*00002-of.*safetensors", status=403, times=99), "access was refused"),
        (Fault(r"GET .*index.json", status=404, code="EntryNotFound", times=99), "a file is not there"),
    ],
)
def test_a_server_that_sends_something_else(hub: Hub, recipe: Path, siblings: Path, fault: Fault, said: str) -> None:
    hub.faults = [fault]
    done = run(hub, "merge", "hub.yaml", "out", "--dry-run", cwd=siblings)
    assert done.code == 2, done.out
    assert said in done.err, done.err
    assert "acme/rlhf" in done.err
    assert "hub.yaml:1 (models.rlhf)" in done.err
    assert "->" in done.err


def test_a_short_trouble_is_waited_for(hub: Hub, recipe: Path, siblings: Path) -> None:
    hub.faults = [Fault(r"GET .*00002-of.*safetensors", status=503), Fault(r"GET .*00001-of.*safetensors", status=429)]
    hub.faults.append(Fault(r"GET .*00003-of.*safetensors", cut=100))
    done = run(hub, "merge", "hub.yaml", "out", "--dry-run", cwd=siblings)
    assert done.code == 0, done.err


def test_a_server_that_hangs(hub: Hub, recipe: Path, siblings: Path) -> None:
    hub.faults = [Fault(r"GET /cdn/.*00002-of.*safetensors", stall=3.0)]
    done = run(hub, "merge", "hub.yaml", "out", "--dry-run", cwd=siblings, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.code == 0, done.err
    assert len([path for _, path in hub.requests if path.startswith("/cdn/") and "00002-of" in path]) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("weights.safetensors",),
        ("model-a.safetensors", "part_2.safetensors"),
        ("sub/a.safetensors", "sub/b.safetensors"),
    ],
)
@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_weights_under_other_names(
    hub: Hub, recipe: Path, siblings: Path, names: tuple[str, ...], stream: tuple[str]
) -> None:
    assert run_amatax("merge", "recipe.yaml", "local", cwd=siblings).code == 0
    folder = siblings / "sft"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(names):
        part = {key: tensors[key] for key in sorted(tensors)[i :: len(names)]}
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if len(names) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        decoy = {key: torch.zeros_like(tensors[key]) for key in weight_map if weight_map[key] == names[0]}
        if "/" in names[0]:
            save_file(decoy, folder / "a.safetensors", {"format": "pt"})
    done = run(hub, "merge", "hub.yaml", "out", *stream, cwd=siblings)
    assert done.code == 0, done.err
    one, other = (load_file(siblings / name / "model.safetensors") for name in ("out", "local"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert run(hub, "verify", "out", cwd=siblings).code == 0


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a\\evil.py", "sub/../../evil.py"])
def test_names_that_lead_out(
    hub: Hub, recipe: Path, siblings: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.hub_api

    listed = tests.hub_api.files
    monkeypatch.setattr(tests.hub_api, "files", lambda folder: [*listed(folder), name])
    entry = hub.entry
    monkeypatch.setattr(hub, "entry", lambda folder, path: entry(folder, "config.json" if path == name else path))
    done = run(hub, "merge", "hub.yaml", "out", "--stream", cwd=siblings)
    assert done.code == 2
    assert "a file is called" in done.err


def test_bin_files_are_downloaded(hub: Hub, recipe: Path, siblings: Path) -> None:
    """They have no header that could be read alone."""
    torch.save(load_file(siblings / "sft" / "model.safetensors"), siblings / "sft" / "pytorch_model.bin")
    (siblings / "sft" / "model.safetensors").unlink()
    done = run(hub, "merge", "hub.yaml", "out", "--dry-run", "--json", cwd=siblings)
    assert done.code == 0, done.err
    assert "pytorch_model.bin" in cached(siblings)
    assert any("acme/sft: .bin weights have no header" in note for note in done.json["notes"])


def a_download(root: Path, repo: str, **sizes: int) -> Download:
    folder = root / repo / "snapshots" / "c"
    folder.mkdir(parents=True)
    return Download(repo, "c", "", folder, {name: (f"digest of {name}", size) for name, size in sizes.items()})


def test_room_for_what_is_still_to_come(tmp_path: Path) -> None:
    """For all models and the output together; what is there under any name, and what an interrupted download left, is not asked for."""
    free = shutil.disk_usage(tmp_path).free
    sft, rlhf = a_download(tmp_path, "sft", a=free * 2 // 3, small=0), a_download(tmp_path, "rlhf", b=free * 2 // 3)
    check_room([sft])
    with pytest.raises(HubError, match=r"GB free, and still to come are sft .* GB, rlhf .* GB$") as error:
        check_room([sft, rlhf])
    assert "--stream" in str(error.value.hint)
    with pytest.raises(HubError, match=r"still to come are sft .* GB, the output .* GB$"):
        check_room([sft], {tmp_path: free * 2 // 3})
    (rlhf.root / "blobs").mkdir()
    (rlhf.root / "blobs" / "digest of b").touch()  # another commit's snapshot has it
    check_room([sft, rlhf], {tmp_path: 0})
    (sft.root / "blobs").mkdir()
    (sft.root / "blobs" / "digest of b.1234.incomplete").write_bytes(bytes(1 << 20))
    assert sft.to_come() == free * 2 // 3
    (sft.root / "blobs" / "digest of a.1234.incomplete").write_bytes(bytes(1 << 20))
    assert sft.to_come() <= free * 2 // 3 - (1 << 20)


def test_a_dry_run_says_what_will_be_fetched_and_whether_there_is_room(hub: Hub, recipe: Path, siblings: Path) -> None:
    done = run(hub, "merge", "hub.yaml", "out", "--dry-run", cwd=siblings)
    assert "fetches  " in done.out
    assert "fetches  " not in run(hub, "merge", "hub.yaml", "out", "--dry-run", "--stream", cwd=siblings).out
    with small_disk(siblings / "cache", 200_000) as disk:
        cache = {"HF_HUB_CACHE": str(disk)}
        small = run(hub, "merge", "hub.yaml", "out", "--dry-run", cwd=siblings, **cache)
        assert small.code == 2
        assert "still to come are acme/sft" in small.err
        assert "--stream" in small.err
        assert run(hub, "merge", "hub.yaml", "out", "--dry-run", "--stream", cwd=siblings, **cache).code == 0
        assert run(hub, "merge", "hub.yaml", "out", cwd=siblings).code == 0
        finished = run(hub, "merge", "hub.yaml", "out", "--dry-run", "--json", cwd=siblings, **cache)
        assert finished.code == 0, finished.err
        assert finished.json["fetches"] == 0


def test_a_repository_that_holds_no_model(hub: Hub, recipe: Path, siblings: Path) -> None:
    for files, said in (
        (["README.md"], "not a model (no config.json; it holds README.md)"),
        (["adapter_config.json"], "no adapter_model.safetensors"),
        (["config.json"], "no safetensors or .bin weights"),
        (["config.json", "model.gguf"], "model.gguf is not one amatax reads"),
        (["config.json", "model-00001-of-00002.safetensors"], "1 of 2 shards are missing"),
    ):
        folder = siblings / "strange" / str(len(hub.repos))
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text(json.dumps({}))
        hub.repos[f"acme/strange{len(hub.repos)}"] = {"main": folder}
        done = run(hub, "inspect", list(hub.repos)[-1], cwd=siblings)
        assert done.code == 2
        assert said in done.err
