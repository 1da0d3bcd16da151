"""amatax verify: equal bit for bit, or what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import Run


@pytest.fixture
def merged(siblings: Path, amatax: Callable[..., Run]) -> Path:
    assert amatax("merge", "recipe.yaml", "out", "-q").code == 0
    return siblings


def test_good(merged: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("verify", "out")
    assert done.code == 0, done.err
    assert "57 tensors" in done.out
    assert amatax("verify", "out", "--sample", 5, "--json").json["compared"] == 5


def test_a_flipped_bit_is_found(merged: Path, amatax: Callable[..., Run]) -> None:
    file = merged / "out" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    done = amatax("verify", "out")
    assert done.code == 2
    assert "is not what the recipe gives" in done.err


def test_a_changed_input_is_named(merged: Path, amatax: Callable[..., Run]) -> None:
    file = merged / "sft" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    done = amatax("verify", "out")
    assert done.code == 2
    assert "sft has changed since the merge: 'model.layers.2.mlp.up_proj.weight'" in done.err


def test_a_changed_side_file_is_named(merged: Path, amatax: Callable[..., Run]) -> None:
    (merged / "out" / "generation_config.json").write_text("{}")
    done = amatax("verify", "out", "--json")
    assert done.code == 2
    assert done.json["changed_files"] == ["generation_config.json"]


def test_a_missing_shard(merged: Path, amatax: Callable[..., Run]) -> None:
    (merged / "out" / "model.safetensors").unlink()
    done = amatax("verify", "out")
    assert done.code == 2
    assert "model.safetensors" in done.err


def test_weights_that_were_not_written_are_named(merged: Path, amatax: Callable[..., Run]) -> None:
    """transformers may load them instead."""
    (merged / "out" / "pytorch_model.bin").write_bytes(b"another model")
    done = amatax("verify", "out")
    assert done.code == 2
    assert "pytorch_model.bin" in done.err


def test_an_input_saved_again_in_another_dtype_is_named(merged: Path, amatax: Callable[..., Run]) -> None:
    file = merged / "sft" / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    done = amatax("verify", "out")
    assert done.code == 2
    assert "sft" in done.err
    assert "another checkpoint than was merged" in done.err


def test_a_folder_of_others(merged: Path, amatax: Callable[..., Run]) -> None:
    done = amatax("verify", "sft")
    assert done.code == 2
    assert "not a folder that amatax wrote" in done.err


def test_a_rerun_ends_at_once_and_notices_new_inputs(merged: Path, amatax: Callable[..., Run]) -> None:
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (merged / "out").iterdir()}
    again = amatax("merge", "recipe.yaml", "out")
    assert again.code == 0
    assert "finished already" in again.out
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (merged / "out").iterdir()} == before

    file = merged / "sft" / "model.safetensors"
    file.write_bytes(file.read_bytes())  # the same bytes, a newer file
    again = amatax("merge", "recipe.yaml", "out")
    assert again.code == 0
    assert "finished already" in again.out

    raw = bytearray(file.read_bytes())
    raw[-2] ^= 1
    file.write_bytes(raw)  # another training step: the same header, other values
    again = amatax("merge", "recipe.yaml", "out")
    assert again.code == 2
    assert "changed since" in again.err
    assert amatax("merge", "recipe.yaml", "out", "--overwrite").code == 0
    assert amatax("verify", "out").code == 0
    assert not list(merged.glob("out.*"))
