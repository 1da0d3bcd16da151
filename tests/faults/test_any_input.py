"""Whatever bytes a file holds: merged, or refused with one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.breaking import (
    FIRST,
    HEAD,
    INDEX,
    LAST,
    NORM,
    amatax_here,
    assert_clear,
    load_all,
    merge_here,
    save_one,
)

Damage = Callable[[Path], None]


# anything at all

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["BF16", "F32", "F4", "", "\ud800"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
    max_leaves=5,
)
FUZZ = settings(max_examples=70, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def one_file_model(folder: Path, content: bytes) -> Path:
    """A model folder around one weight file."""
    shutil.rmtree(folder / "m", ignore_errors=True)
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text('{"num_hidden_layers": 1}')
    (folder / "m" / "model.safetensors").write_bytes(content)
    return folder / "m"


def assert_taken_or_refused(model: Path) -> None:
    answer = amatax_here("inspect", model)
    if answer.code != 0:
        assert_clear(answer)


@FUZZ
@given(content=st.binary(max_size=64), length=st.none() | st.integers(0, 80))
def test_any_bytes(content: bytes, length: int | None, tmp_path: Path) -> None:
    """Noise, with and without a length in front."""
    front = b"" if length is None else length.to_bytes(8, "little")
    assert_taken_or_refused(one_file_model(tmp_path, front + content))


@FUZZ
@given(name=st.text(max_size=12), key=st.sampled_from(["dtype", "shape", "data_offsets", None]), value=JSON)
def test_any_header_entry(name: str, key: str | None, value: Any, tmp_path: Path) -> None:
    """A sound header but for one name and one value."""
    entry: Any = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
    entry = value if key is None else entry | {key: value}
    text = json.dumps({"__metadata__": {"format": "pt"}, name: entry}).encode()
    assert_taken_or_refused(one_file_model(tmp_path, len(text).to_bytes(8, "little") + text + bytes(4)))


@FUZZ
@given(data=st.data())
def test_any_flipped_byte(data: st.DataObject, tmp_path: Path, llama_family: Path) -> None:
    """A real shard with a few bytes of its header changed."""
    raw = bytearray((llama_family / "rlhf" / LAST).read_bytes())
    end = 8 + int.from_bytes(raw[:8], "little")
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=3)):
        raw[at] = data.draw(st.integers(0, 255))
    assert_taken_or_refused(one_file_model(tmp_path, bytes(raw)))


CONFIG_KEYS = st.sampled_from(
    [
        "num_hidden_layers",
        "n_layer",
        "architectures",
        "quantization_config",
        "text_config",
        "decoder",
        "is_encoder_decoder",
        "dtype",
        "torch_dtype",
        "tie_word_embeddings",
        "auto_map",
        "encoder_layers",
    ]
)
SMALL = JSON.filter(lambda v: type(v) is not int or v < 1000)


@FUZZ
@given(changes=st.dictionaries(CONFIG_KEYS, SMALL, min_size=1, max_size=3))
def test_any_config(changes: dict[str, Any], tmp_path: Path, llama_family: Path) -> None:
    """Values of any kind under the keys that amatax reads, in both models, through inspect and a whole plan."""
    for role in ("sft", "rlhf"):
        if not (tmp_path / role).exists():
            shutil.copytree(llama_family / role, tmp_path / role)
        whole = json.loads((llama_family / role / "config.json").read_text()) | changes
        (tmp_path / role / "config.json").write_text(json.dumps(whole))
    (tmp_path / "recipe.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 0.5}\n")
    for answer in (amatax_here("inspect", tmp_path / "sft"), merge_here(tmp_path, "--dry-run")):
        if answer.code != 0:
            assert_clear(answer)


@FUZZ
@given(data=st.data())
def test_any_index(data: st.DataObject, tmp_path: Path, llama_family: Path) -> None:
    """Any names and files in the index."""
    if not (tmp_path / "sft").exists():
        shutil.copytree(llama_family / "sft", tmp_path / "sft")
    files = st.sampled_from([FIRST, LAST, "", ".", "..", "/", "config.json", "a/b", "~", "\0", "\ud800"]) | st.text(
        max_size=6
    )
    weight_map = data.draw(st.dictionaries(st.sampled_from([NORM, HEAD, "x"]), files | JSON, max_size=3) | JSON)
    (tmp_path / "sft" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_taken_or_refused(tmp_path / "sft")


def test_save_one_is_sound(siblings: Path) -> None:
    """The helper behind these tests writes what amatax takes."""
    save_one(siblings / "rlhf", load_all(siblings / "rlhf"))
    assert merge_here(siblings, "--dry-run").code == 0
