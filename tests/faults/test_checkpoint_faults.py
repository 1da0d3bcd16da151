"""A damaged, packed or foreign checkpoint is refused with the file or tensor, the cause and the next step."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.faults.breaking import (
    DOWN,
    EMBED,
    FIRST,
    HEAD,
    INDEX,
    LAST,
    NORM,
    SECOND,
    Case,
    amatax_here,
    assert_clear,
    assert_refused,
    edit_header,
    edit_json,
    edit_tensors,
    load_all,
    merge_here,
    save_one,
)
from tests.faults.damage import (
    FP8_CONFIG,
    POINTER,
    PWNED,
    as_bin,
    bin_pointer,
    both,
    config,
    cut,
    evil_pickle,
    evil_zip,
    folder_loop,
    fp8,
    header,
    hole,
    huge_shape,
    index,
    legacy_bin,
    link,
    lying,
    narrower,
    one_level_too_high,
    only_adapter,
    overlap,
    packed,
    poison,
    raw_header,
    remove,
    renamed,
    rezipped,
    says,
    stale_shard,
    surrogate_names,
    tensors,
    tied_rlhf,
    to_bin,
    twice,
    two_of_three_without_index,
    without_layers,
    write,
)

CASES = [
    # files that are missing or no files
    Case("no config", remove("config.json"), ("rlhf", "config.json")),
    Case("empty config", write("config.json", ""), ("rlhf/config.json", "empty")),
    Case("config of blanks", write("config.json", "  \n"), ("rlhf/config.json", "empty")),
    Case("config no JSON", write("config.json", "{'a': 1}"), ("rlhf/config.json", "not valid JSON")),
    Case("config a list", write("config.json", "[]"), ("rlhf/config.json", "not a JSON object")),
    Case("config no UTF-8", write("config.json", b'{"a": "\xff"}'), ("rlhf/config.json", "not valid JSON")),
    Case("config nested deeply", write("config.json", "[" * 100_000), ("rlhf/config.json", "not valid JSON")),
    Case("config a git-lfs pointer", write("config.json", POINTER), ("rlhf/config.json", "git lfs pull")),
    Case("empty folder", lambda f: [p.unlink() for p in (f / "rlhf").iterdir()] and None, ("rlhf", "empty")),
    Case("no weights", lambda f: [p.unlink() for p in (f / "rlhf").glob("model*")] and None, ("rlhf", "no safetensors")),
    Case("only GGUF", both(lambda f: [p.unlink() for p in (f / "rlhf").glob("model*")] and None, write("m.gguf", "x")), ("m.gguf",)),
    Case("only a LoRA adapter", only_adapter, ("rlhf", "LoRA", "adapter:")),
    Case("a folder of checkpoints", one_level_too_high, ("no config.json", "checkpoint-100")),
    Case("missing shard", remove(SECOND), (f"rlhf/{SECOND}", "no such file")),
    Case("missing shard without index", two_of_three_without_index, ("1 of 3 shards", "number 2")),
    Case("shards of two saves", stale_shard, ("shards of different saves", "00001-of-00004")),
    # shards
    Case("empty shard", write(SECOND, b""), (f"rlhf/{SECOND}", "empty")),
    Case("shard of 5 bytes", write(SECOND, b"\x08\0\0\0\0"), (f"rlhf/{SECOND}", "not a safetensors file")),
    Case("shard cut in its data", cut(SECOND, 0.9), (f"rlhf/{SECOND}", "bytes shorter")),
    Case("shard cut in its header", cut(SECOND, 0.002), (f"rlhf/{SECOND}", "header")),
    Case("trailing bytes", lambda f: (f / "rlhf" / SECOND).open("ab").write(b"1234567") and None, (SECOND, "7 bytes longer")),
    Case("git-lfs pointer", write(SECOND, POINTER), (f"rlhf/{SECOND}", "git lfs pull")),
    Case("an HTML page", write(SECOND, "<!DOCTYPE html><html>404</html>"), (f"rlhf/{SECOND}", "not a safetensors file")),
    Case("noise", write(SECOND, bytes(range(256)) * 64), (f"rlhf/{SECOND}", "not a safetensors file")),
    Case("zeros", write(SECOND, bytes(4096)), (f"rlhf/{SECOND}",)),
    Case("header longer than the file", write(SECOND, (10**6).to_bytes(8, "little") + b"{}"), (SECOND, "1,000,000")),
    Case("header of 2^64 bytes", write(SECOND, b"\xff" * 4096), (SECOND, "header")),
    # headers
    Case("header no JSON", raw_header(b"{'a': 1}"), (FIRST, "not JSON")),
    Case("header a list", raw_header(b"[]"), (FIRST, "JSON object")),
    Case("header no UTF-8", raw_header(b'{"\xff": 1}'), (FIRST, "not JSON")),
    Case("header nested deeply", raw_header(b"[" * 100_000), (FIRST, "not JSON")),
    Case("header with a number too long", raw_header(b'{"a": ' + b"9" * 5000 + b"}"), (FIRST, "not JSON")),
    Case("key twice", twice(NORM), (FIRST, NORM, "twice")),
    Case("overlap", header(overlap), (FIRST, "overlap")),
    Case("hole", header(hole), (FIRST, "hole")),
    Case("first tensor not at 0", header(lambda h: h.pop(DOWN)), (FIRST, "hole")),
    Case("offsets backwards", says("data_offsets", [128, 0]), (FIRST, NORM)),
    Case("offsets negative", says("data_offsets", [-128, 0]), (FIRST, NORM, "malformed")),
    Case("offsets beyond the file", says("data_offsets", [10**12, 10**12 + 128]), (FIRST, "hole")),
    Case("offsets no integers", says("data_offsets", [0.0, 128.0]), (FIRST, NORM, "malformed")),
    Case("offsets three", says("data_offsets", [0, 64, 128]), (FIRST, NORM, "malformed")),
    Case("shape no integers", says("shape", ["64"]), (FIRST, NORM, "malformed")),
    Case("shape negative", says("shape", [-64]), (FIRST, NORM, "malformed")),
    Case("shape a word", says("shape", "64"), (FIRST, NORM, "malformed")),
    Case("shape a mapping", says("shape", {}), (FIRST, NORM)),
    Case("shape true", says("shape", [True]), (FIRST, NORM, "malformed")),
    Case("shape huge", says("shape", [2**62, 2**62]), (FIRST, NORM)),
    Case("shape of 4000 digits", header(huge_shape), (FIRST, NORM)),
    Case("shape too small", says("shape", [63]), (FIRST, NORM, "126", "128")),
    Case("dtype unknown", says("dtype", "BF17"), (FIRST, NORM, "'BF17'")),
    Case("dtype a list", says("dtype", ["BF16"]), (FIRST, NORM)),
    Case("dtype a mapping", says("dtype", {}), (FIRST, NORM)),
    Case("dtype missing", header(lambda h: h[NORM].pop("dtype")), (FIRST, NORM, "malformed")),
    Case("entry a number", header(lambda h: h.update({NORM: 5})), (FIRST, NORM, "malformed")),
    Case("entry null", header(lambda h: h.update({NORM: None})), (FIRST, NORM, "malformed")),
    Case("a name no file can hold", surrogate_names, ("sft/model.safetensors", "rlhf/model.safetensors")),
    # the index
    Case("index empty", write(INDEX, ""), (INDEX, "empty")),
    Case("index no JSON", write(INDEX, "weight_map"), (INDEX, "not valid JSON")),
    Case("index without weight_map", write(INDEX, "{}"), (INDEX, "weight_map")),
    Case("index with an empty weight_map", write(INDEX, '{"weight_map": {}}'), (INDEX, "empty")),
    Case("index with numbers", write(INDEX, '{"weight_map": {"a": 1}}'), (INDEX, "weight_map")),
    Case("index a git-lfs pointer", write(INDEX, POINTER), (INDEX, "git lfs pull")),
    Case("index names a missing file", index(lambda m: m.update({NORM: "model-9.safetensors"})), ("model-9.safetensors",)),
    Case("index names a tensor that is not there", index(lambda m: m.update({"x.weight": FIRST})), ("'x.weight'", FIRST)),
    Case("index gives the wrong shard", index(lambda m: m.update({NORM: LAST})), (NORM, LAST)),
    Case("index leads up", index(lambda m: m.update({NORM: "../sft/" + FIRST})), ("../sft/" + FIRST, "outside")),
    Case("index leads to an absolute path", index(lambda m: m.update({NORM: "/etc/hostname"})), ("/etc/hostname", "outside")),
    Case("index names a NUL", index(lambda m: m.update({NORM: "a\0b.safetensors"})), ("rlhf",)),
    Case("index names a file name too long", index(lambda m: m.update({NORM: "x" * 300})), ("rlhf", "xxx")),
    Case("index names what UTF-8 cannot", index(lambda m: m.update({NORM: "\ud800"})), ("rlhf",)),
    Case("index names the folder", index(lambda m: m.update({NORM: ""})), ("rlhf",)),
    Case("index names a folder", both(lambda f: (f / "rlhf" / "d").mkdir(), index(lambda m: m.update({NORM: "d"}))), ("rlhf/d",)),
    # links
    Case("tokenizer links out", both(link("tokenizer.json", "/etc/hostname"), lambda f: shutil.copy(f / "rlhf" / "tokenizer.json", f / "sft", follow_symlinks=False) and None), ("tokenizer.json", "outside", "/etc/hostname")),
    Case("config links out", link("config.json", "../sft/config.json"), ("config.json", "outside")),
    Case("shard links out", link(SECOND, f"../sft/{SECOND}"), (SECOND, "outside")),
    Case("single file links out", link("model.safetensors", f"../sft/{SECOND}"), ("model.safetensors", "outside")),
    Case("index links out", link(INDEX, f"../sft/{INDEX}"), (INDEX, "outside")),
    Case("shard links to itself", link(SECOND, SECOND), (SECOND,)),
    Case("config links to itself", link("config.json", "config.json"), ("config.json",)),
    Case("link to nothing", link(SECOND, "gone"), (SECOND, "no such file")),
    Case("folder links to itself", folder_loop, ("rlhf",)),
    Case("a pipe as shard", both(remove(SECOND), lambda f: os.mkfifo(f / "rlhf" / SECOND)), (SECOND,)),
    # siblings that are none
    Case("other layer count", both(tensors(without_layers), config(num_hidden_layers=4)), ("6 layers", "rlhf has 4")),
    Case("tensors missing", tensors(lambda t: [t.pop(n) for n in list(t) if n.endswith("layernorm.weight")]), ("rlhf", "lacks 12 tensors", NORM)),
    Case("tensors too many", tensors(lambda t: t.update({"value_head.weight": torch.ones(1, 64)})), ("1 tensor", "'value_head.weight'")),
    Case("other names", tensors(renamed), ("rlhf", "18 tensors", "ffn", "mlp")),
    Case("another MLP", tensors(lambda t: t.update({DOWN: torch.ones(64, 48)})), ("1 tensor", DOWN, "[64, 96]", "[64, 48]")),
    Case("another hidden size", tensors(narrower), ("[160, 64]", "[160, 32]"), never=("has 160 rows in sft and 160",)),
    Case("another vocabulary", tensors(lambda t: t.update({EMBED: torch.ones(161, 64), HEAD: torch.ones(161, 64)})), ("vocabularies", "160", "161", "resize_token_embeddings(161)")),
    Case("an embedding that is one number", tensors(lambda t: t.update({EMBED: torch.tensor(1.0)})), (EMBED,)),
    Case("layers that the config lacks", config("sft", num_hidden_layers=8), ("sft", "8 layers", "layer 6")),
    Case("no layers", both(*(tensors(lambda t: [t.pop(n) for n in list(t) if "layers" in n], role) for role in ("sft", "rlhf"))), ("no transformer layers",)),
    Case("tied here, own head there", tied_rlhf, ("sft", HEAD, "rlhf", "untie: true")),
    # quantised and packed
    Case("GPTQ", both(packed("qweight", "qzeros", "g_idx"), config(quantization_config={"quant_method": "gptq"})), ("rlhf is quantised", "gptq", "unquantised")),
    Case("GPTQ without a word in the config", packed("qweight", "qzeros", "g_idx"), ("sft is quantised", "126 packed tensors", ".g_idx'", "unquantised")),
    Case("AWQ", both(packed("qweight", "qzeros"), config(quantization_config={"quant_method": "awq"})), ("rlhf is quantised", "awq")),
    Case("bitsandbytes 4 bit", both(packed("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"), config(quantization_config={"load_in_4bit": True})), ("rlhf is quantised",)),
    Case("bitsandbytes without a word in the config", packed("weight", "weight.absmax", "weight.quant_map"), ("quantised", "absmax")),
    Case("bitsandbytes 8 bit", packed("weight", "SCB"), ("quantised", "SCB")),
    Case("MXFP4", both(packed("weight_blocks", "weight_scales"), config(quantization_config={"quant_method": "mxfp4"})), ("rlhf is quantised", "mxfp4")),
    Case("MXFP4 without a word in the config", packed("weight_blocks", "weight_scales"), ("quantised", "_blocks")),
    Case("block-scaled FP8", both(tensors(fp8), tensors(fp8, "sft"), config(quantization_config=FP8_CONFIG)), ("rlhf is quantised", "fp8")),
    Case("block-scaled FP8 without a word in the config", both(tensors(fp8), tensors(fp8, "sft")), ("quantised", "weight_scale_inv")),
    Case("compressed-tensors", packed("weight_packed", "weight_scale", "weight_shape"), ("quantised", "weight_packed")),
    Case("quantization_config a word", config(quantization_config="gptq"), ("rlhf is quantised", "gptq")),
    Case("complex numbers", both(*(tensors(lambda t: t.update({"x": torch.ones(2, dtype=torch.complex64)}), r) for r in ("sft", "rlhf"))), ("C64", "'x'")),
    # values
    Case("NaN", poison(float("nan")), ("rlhf/model.safetensors", DOWN, "rlhf", "nan", "70", "--allow-nonfinite")),
    Case("infinity", poison(float("inf")), ("rlhf/model.safetensors", DOWN, "inf", "--allow-nonfinite")),
    Case("minus infinity in one", poison(float("-inf"), NORM, 3), ("rlhf/model.safetensors", NORM, "-inf")),
    Case("overflow of the output dtype", both(poison(1e30), lambda f: (f / "recipe.yaml").open("a").write("output: {dtype: float16}\n") and None), (DOWN, "F16", "bfloat16")),
    # pickles
    Case("pickle with code in torch's zip", evil_zip, ("rlhf/pytorch_model.bin", "save_pretrained")),
    Case("bare pickle with code", evil_pickle, ("rlhf/pytorch_model.bin", "save_pretrained")),
    Case(".bin from before torch 1.6", legacy_bin, ("rlhf/pytorch_model.bin", "save_pretrained")),
    Case(".bin empty", both(lambda f: to_bin(f / "rlhf") and None, write("pytorch_model.bin", b"")), ("rlhf/pytorch_model.bin", "empty")),
    Case(".bin cut", both(lambda f: to_bin(f / "rlhf") and None, cut("pytorch_model.bin", 0.5)), ("rlhf/pytorch_model.bin",)),
    Case(".bin a git-lfs pointer", bin_pointer, ("rlhf/pytorch_model.bin", "git lfs pull")),
    Case(".bin of noise", both(lambda f: to_bin(f / "rlhf") and None, write("pytorch_model.bin", bytes(range(256)) * 8)), ("rlhf/pytorch_model.bin",)),
    Case(".bin with a list", as_bin([torch.ones(2)]), ("rlhf/pytorch_model.bin", "list")),
    Case(".bin with a whole training state", as_bin(lambda s: {"model": s, "step": 5}), ("rlhf/pytorch_model.bin", "'model'", "dict")),
    Case(".bin with numbers as names", as_bin({0: torch.ones(2)}), ("rlhf/pytorch_model.bin",)),
    Case(".bin with a sparse tensor", as_bin({"a": torch.eye(3).to_sparse()}), ("rlhf/pytorch_model.bin", "'a'")),
    Case(".bin with a transposed tensor", as_bin(lambda s: s | {DOWN: s[DOWN].t()}), ("rlhf/pytorch_model.bin", DOWN)),
    Case(".bin with nothing", as_bin({}), ("rlhf", "no tensors")),
    Case(".bin compressed", rezipped, ("rlhf/pytorch_model.bin",)),
    Case(".bin with a tensor larger than its storage", lying(b"K\xa0K@\x86", b"K\xa0K\xff\x86"), ("rlhf/pytorch_model.bin",)),
    Case(".bin with a tensor beyond its storage", lying(b"K\x00K\xa0K@\x86", b"K\xf0K\xa0K@\x86"), ("rlhf/pytorch_model.bin",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_checkpoint_is_refused(case: Case, siblings: Path) -> None:
    assert_refused(case, siblings)
    assert not Path(PWNED).exists(), "code in a checkpoint was run"


def test_both_models_bad_at_once(siblings: Path) -> None:
    """Two faults, each with its file and its next step."""
    (siblings / "sft" / "config.json").write_text("")
    (siblings / "rlhf" / SECOND).unlink()
    answer = merge_here(siblings)
    assert_clear(answer)
    assert "2 faults" in answer.err
    assert "sft/config.json" in answer.err and f"rlhf/{SECOND}" in answer.err


def test_side_file_that_is_a_pointer(siblings: Path) -> None:
    """A tokenizer that git-lfs never fetched would make a model folder that does not load."""
    (siblings / "sft" / "tokenizer.json").write_text(POINTER)
    answer = merge_here(siblings)
    assert_clear(answer)
    assert "tokenizer.json" in answer.err and "git lfs pull" in answer.err


def test_a_dry_run_finds_links_too(siblings: Path) -> None:
    """What the merge would refuse, its plan refuses."""
    link("tokenizer.json", "/etc/hostname")(siblings)
    (siblings / "sft" / "tokenizer.json").symlink_to("/etc/hostname")
    answer = merge_here(siblings, "--dry-run")
    assert_clear(answer)
    assert "tokenizer.json" in answer.err


def plan_in_4_gb(folder: Path) -> Run:
    """A dry run in a process of its own that may take little time and memory."""
    done = subprocess.run(
        [sys.executable, "-m", "amatax", "merge", "recipe.yaml", "out", "--dry-run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**11},
        {"architectures": 5},
        {"architectures": [5, None]},
        {"quantization_config": []},
        {"text_config": {"text_config": {"num_hidden_layers": "six"}}},
        {"is_encoder_decoder": True},
        {"tie_word_embeddings": "yes"},
        {"dtype": ["bfloat16"], "torch_dtype": {}},
        {"x": "\ud800", "dtype": "float32"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_odd_config_is_no_bug(change: dict[str, Any], siblings: Path) -> None:
    """Taken or refused, in little time and memory."""
    for role in ("sft", "rlhf"):
        edit_json(siblings / role / "config.json", **change)
    if "num_hidden_layers" in change:
        assert_clear(plan_in_4_gb(siblings))
        return
    for answer in (amatax_here("inspect", siblings / "sft"), merge_here(siblings)):
        if answer.code != 0:
            assert_clear(answer)


@pytest.mark.parametrize("digits", [9, 5000])
def test_huge_layer_number_in_a_name(digits: int, siblings: Path) -> None:
    """No config bounds it: it must not be counted up to, nor be too long for an int."""
    for role in ("sft", "rlhf"):
        edit_json(siblings / role / "config.json", num_hidden_layers=None)
        edit_tensors(siblings / role, lambda t: t.update({"model.layers." + "9" * digits + ".x": torch.ones(1)}))
    answer = plan_in_4_gb(siblings)
    if digits == 9 or answer.code != 0:
        assert_clear(answer)


def test_only_empty_tensors(siblings: Path) -> None:
    """A checkpoint of no numbers at all."""
    edit_tensors(siblings / "sft", lambda t: [t.update({n: t[n].reshape(-1)[:0]}) for n in list(t)])
    answer = amatax_here("inspect", siblings / "sft")
    assert answer.code in (0, 2), answer.err
    assert "bug in amatax" not in answer.err


def test_empty_tensor_in_any_order(siblings: Path) -> None:
    """safetensors' own reader takes a tensor of no elements before or after the one at its offset; so does amatax."""
    from safetensors.torch import load_file

    for role in ("sft", "rlhf"):
        save_one(siblings / role, load_all(siblings / role))
        path = siblings / role / "model.safetensors"
        edit_header(path, lambda h: h.update({"zzz": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}))
        assert "zzz" in load_file(path)
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
