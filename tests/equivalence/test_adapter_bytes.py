"""An adapter's product is the same bytes wherever chunks begin and end, in whatever order, and however often a merge is broken off."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from amatax.planning.tensors import PlannedTensor
from tests.adapters import lora, save_adapter, save_model, tensors
from tests.conftest import run_amatax, tiny_llama
from tests.equivalence.test_same_bytes import assert_same_tensors, digests
from tests.faults.processes import pause_after
from tests.forked import Warm


@pytest.fixture(scope="module", params=["LoRA", "DoRA"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tensors take several chunks and tiles that end in the middle of rows, an adapter, and a merge."""
    folder = tmp_path_factory.mktemp("adapted")
    sizes = {"hidden_size": 616, "intermediate_size": 1000, "vocab_size": 1500, "num_attention_heads": 4}
    model = save_model(folder / "model", tiny_llama(**sizes, num_hidden_layers=3), dtype="bfloat16")
    targets = ("q_proj", "up_proj", "down_proj", "lm_head")
    save_adapter(model, lora(*targets, use_dora=request.param == "DoRA"), folder / "lora", spread=0.02)
    models = {"sft": "./model", "rlhf": {"model": "./model", "adapter": "./lora"}}
    recipe = {"models": models, "merge": {"ratios": [0.7, 0.4, 1]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run_amatax("merge", "recipe.yaml", "out", "--threads", 1, cwd=folder).code == 0
    return folder


def test_threads(family: Path, tmp_path: Path) -> None:
    assert run_amatax("merge", family / "recipe.yaml", tmp_path / "out", "--threads", 3).code == 0
    assert digests(tmp_path / "out") == digests(family / "out")


def test_shard_sizes_and_hash_seeds(family: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((family / "recipe.yaml").read_text()) | {"output": {"max_shard_size": "1MB"}}
    (family / "shards.yaml").write_text(yaml.safe_dump(recipe))
    done = run_amatax("merge", family / "shards.yaml", tmp_path / "out", env={"PYTHONHASHSEED": "17"})
    assert done.code == 0, done.err
    assert_same_tensors(tmp_path / "out", family / "out")


def test_chunks_of_any_size(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last element of a chunk stand anywhere in a row, and a block may be a few elements long."""
    from amatax.api.planning import plan
    from amatax.streaming import stream

    planned = plan(family / "recipe.yaml")
    names = [n for n in planned.tensors if "layers.1" in n and ("up_proj" in n or "q_proj" in n)]
    found = []
    for elements, block in ((1 << 18, 1 << 17), (100_003, 777), (1 << 17, 100_000)):
        monkeypatch.setattr(stream, "CPU_ELEMENTS", elements)
        monkeypatch.setattr(stream, "CPU_BLOCK", block)
        written = {name: bytearray(planned.tensors[name].sources["sft"].nbytes) for name in names}

        def sink(tensor: PlannedTensor, begin: int, data: memoryview, written: dict[str, bytearray] = written) -> None:
            written[tensor.name][begin : begin + len(data)] = data

        stream.Streamer(planned, [torch.device("cpu")], 2).run((planned.tensors[n] for n in names), sink)
        found.append(written)
    assert found[0] == found[1] == found[2]
    out = tensors(family / "out")
    assert all(bytes(found[0][name]) == out[name].view(torch.uint8).numpy().tobytes() for name in names)


def test_resumed(family: Path, tmp_path: Path) -> None:
    """Killed after some shards; the rest is merged by a second run."""
    for name in ("model", "lora"):
        shutil.copytree(family / name, tmp_path / name)
    recipe = yaml.safe_load((family / "recipe.yaml").read_text()) | {"output": {"max_shard_size": "1MB"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    warm = Warm("amatax.api", "amatax.streaming.stream", "amatax.writing.writer")
    try:
        job = warm.start(tmp_path, "merge", "recipe.yaml", "out")
        pause_after(job, tmp_path / "out.unfinished", 2)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    finally:
        warm.close()
    done = run_amatax("merge", "recipe.yaml", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "continuing" in done.err
    assert_same_tensors(tmp_path / "out", family / "out")


def test_what_two_models_share_is_read_once(family: Path) -> None:
    """The plan's reads, and what the progress bar is told, are the model's bytes and the adapter's."""
    from amatax.api.common import Watcher
    from amatax.api.merging import merge

    class Counting(Watcher):
        total = seen = 0

        def start(self, total: int) -> None:
            self.total = total

        def advance(self, n: int) -> None:
            self.seen += n

    counting = Counting()
    result = merge(family / "recipe.yaml", family / "counted", threads=1, watcher=counting)
    model = sum(tensor.nbytes for tensor in tensors(family / "model").values())
    used = [e for t in result.plan.tensors.values() if (d := t.sources["rlhf"].delta) for e in d.entries]
    assert len(used) == len(tensors(family / "lora")) - sum("base_layer" in name for name in tensors(family / "lora"))
    replaced = sum(t.nbytes for n, t in tensors(family / "lora").items() if "base_layer" in n)
    assert counting.seen == counting.total == model + sum(e.nbytes for e in used) + replaced


def test_the_recorded_recipe_makes_it_again(family: Path, tmp_path: Path) -> None:
    done = run_amatax("merge", family / "out" / "amatax_recipe.yaml", tmp_path / "again")
    assert done.code == 0, done.err
    assert digests(tmp_path / "again") == digests(family / "out")
