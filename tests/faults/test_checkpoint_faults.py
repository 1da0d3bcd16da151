"""A damaged, packed or foreign checkpoint is refused with the file or tensor, the cause and the next step."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.breaking import (
    DOWN,
    EMBED,
    FIRST,
    HEAD,
    INDEX,
    LAST,
    NORM,
    SECOND,
    Answer,
    Case,
    amatax_here,
    assert_clear,
    assert_refused,
    edit_header,
    edit_json,
    edit_tensors,
    load_all,
    merge_here,
    read_raw,
    save_one,
    write_raw,
)

Damage = Callable[[Path], None]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4321\n"
FP8_CONFIG = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def write(name: str, content: bytes | str) -> Damage:
    """rlhf/name is this instead."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "rlhf" / name).write_bytes(data) and None


def remove(name: str) -> Damage:
    return lambda folder: (folder / "rlhf" / name).unlink()


def cut(name: str, keep: float) -> Damage:
    """Only the first part of the file is there."""

    def damage(folder: Path) -> None:
        path = folder / "rlhf" / name
        os.truncate(path, int(path.stat().st_size * keep))

    return damage


def link(name: str, target: str) -> Damage:
    """rlhf/name is a symbolic link."""

    def damage(folder: Path) -> None:
        (folder / "rlhf" / name).unlink(missing_ok=True)
        (folder / "rlhf" / name).symlink_to(target)

    return damage


def header(change: Callable[[dict[str, Any]], Any], name: str = FIRST) -> Damage:
    """The header of a shard says something else; the data stays."""
    return lambda folder: edit_header(folder / "rlhf" / name, change)


def raw_header(text: bytes) -> Damage:
    """The header is these bytes; the data stays."""

    def damage(folder: Path) -> None:
        path = folder / "rlhf" / FIRST
        write_raw(path, text, read_raw(path)[1])

    return damage


def twice(key: str) -> Damage:
    """A key stands twice in the header, which JSON readers let pass."""

    def damage(folder: Path) -> None:
        path = folder / "rlhf" / FIRST
        head, data = read_raw(path)
        text = json.dumps(head)
        item = json.dumps(head[key])
        write_raw(path, f'{text[:-1]}, "{key}": {item}}}'.encode(), data)

    return damage


def says(key: str, value: Any, name: str = NORM) -> Damage:
    """A header entry with another value."""
    return header(lambda head: head[name].update({key: value}))


def index(change: Callable[[dict[str, str]], Any]) -> Damage:
    """Another weight_map."""

    def damage(folder: Path) -> None:
        path = folder / "rlhf" / INDEX
        whole = json.loads(path.read_text())
        change(whole["weight_map"])
        path.write_text(json.dumps(whole))

    return damage


def config(role: str = "rlhf", **changes: Any) -> Damage:
    return lambda folder: edit_json(folder / role / "config.json", **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], role: str = "rlhf") -> Damage:
    """Other tensors in one model."""
    return lambda folder: edit_tensors(folder / role, change)


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def without_layers(head: dict[str, torch.Tensor]) -> None:
    for name in [n for n in head if ".layers.4." in n or ".layers.5." in n]:
        del head[name]


def renamed(head: dict[str, torch.Tensor]) -> None:
    for name in [n for n in head if "mlp" in n]:
        head[name.replace("mlp", "ffn")] = head.pop(name)


def narrower(head: dict[str, torch.Tensor]) -> None:
    """Half the hidden size, everywhere."""
    for name, t in list(head.items()):
        head[name] = t[tuple(slice(0, n // 2) if n == 64 else slice(None) for n in t.shape)].clone()


def packed(*suffixes: str) -> Damage:
    """The projections are packed codes with scales, as a quantiser saves them."""

    def change(head: dict[str, torch.Tensor]) -> None:
        for name in [n for n in head if n.endswith("_proj.weight")]:
            stem = name.removesuffix("weight")
            del head[name]
            for suffix in suffixes:
                head[stem + suffix] = torch.ones(8, 8, dtype=torch.uint8)

    return both(tensors(change), tensors(change, "sft"))


def fp8(head: dict[str, torch.Tensor]) -> None:
    for name in [n for n in head if n.endswith("_proj.weight")]:
        head[name] = head[name].to(torch.float8_e4m3fn)
        head[name + "_scale_inv"] = torch.ones(1, 1)


def poison(value: float, name: str = DOWN, at: int = 70) -> Damage:
    return tensors(lambda head: head[name].view(-1).__setitem__(at, value))


def to_bin(folder: Path, *, drop: bool = True) -> dict[str, torch.Tensor]:
    """The checkpoint as one pytorch_model.bin."""
    state = load_all(folder)
    if drop:
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
            path.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def as_bin(state: Any) -> Damage:
    """rlhf is a pytorch_model.bin that holds this, or what this function of the state gives."""

    def damage(folder: Path) -> None:
        whole = to_bin(folder / "rlhf")
        torch.save(state(whole) if callable(state) else state, folder / "rlhf" / "pytorch_model.bin")

    return damage


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


PWNED = str(Path(tempfile.gettempdir()) / f"amatax-pwned-{os.getpid()}")


def zip_bytes(items: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in items.items():
            archive.writestr(name, data)
    return out.getvalue()


def evil_zip(folder: Path) -> None:
    """torch's zip format, with a pickle that runs code."""
    to_bin(folder / "rlhf")
    data = zip_bytes({"m/data.pkl": pickle.dumps(Evil(PWNED), 2), "m/version": b"3\n", "m/byteorder": b"little"})
    (folder / "rlhf" / "pytorch_model.bin").write_bytes(data)


def evil_pickle(folder: Path) -> None:
    """A bare pickle that runs code."""
    to_bin(folder / "rlhf")
    (folder / "rlhf" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(PWNED), 2))


def legacy_bin(folder: Path) -> None:
    state = to_bin(folder / "rlhf")
    torch.save(state, folder / "rlhf" / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def rezipped(folder: Path) -> None:
    """Tensors compressed inside the zip: their bytes are not the numbers."""
    to_bin(folder / "rlhf")
    path = folder / "rlhf" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(zip_bytes(items, zipfile.ZIP_DEFLATED))


def bin_items(folder: Path) -> dict[str, bytes]:
    """The records of rlhf as pytorch_model.bin."""
    to_bin(folder / "rlhf")
    with zipfile.ZipFile(folder / "rlhf" / "pytorch_model.bin") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def other_byteorder(folder: Path) -> None:
    items = bin_items(folder)
    items["pytorch_model/byteorder"] = b"big"
    (folder / "rlhf" / "pytorch_model.bin").write_bytes(zip_bytes(items))


def lying(old: bytes, new: bytes) -> Damage:
    """The pickle says another size or place of the embeddings, in a file that torch.save laid out."""

    def damage(folder: Path) -> None:
        to_bin(folder / "rlhf")
        path = folder / "rlhf" / "pytorch_model.bin"
        raw = path.read_bytes()
        assert old in raw and len(old) == len(new)
        path.write_bytes(raw.replace(old, new, 1))

    return damage


def bin_pointer(folder: Path) -> None:
    to_bin(folder / "rlhf")
    (folder / "rlhf" / "pytorch_model.bin").write_text(POINTER)


def only_adapter(folder: Path) -> None:
    shutil.rmtree(folder / "rlhf")
    (folder / "rlhf").mkdir()
    (folder / "rlhf" / "adapter_config.json").write_text("{}")
    (folder / "rlhf" / "adapter_model.safetensors").write_bytes(b"")


def one_level_too_high(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "rlhf").rename(folder / "runs" / "checkpoint-100")
    (folder / "runs").rename(folder / "rlhf")


def two_of_three_without_index(folder: Path) -> None:
    (folder / "rlhf" / INDEX).unlink()
    (folder / "rlhf" / SECOND).unlink()


def stale_shard(folder: Path) -> None:
    (folder / "rlhf" / INDEX).unlink()
    shutil.copy(folder / "rlhf" / FIRST, folder / "rlhf" / "model-00001-of-00004.safetensors")


def tied_rlhf(folder: Path) -> None:
    edit_tensors(folder / "rlhf", lambda t: t.pop(HEAD))
    edit_json(folder / "rlhf" / "config.json", tie_word_embeddings=True)


def folder_loop(folder: Path) -> None:
    shutil.rmtree(folder / "rlhf")
    (folder / "rlhf").symlink_to("rlhf")


def surrogate_names(folder: Path) -> None:
    """A tensor name that JSON can spell and UTF-8 cannot, in both."""
    for role in ("sft", "rlhf"):
        save_one(folder / role, load_all(folder / role))
        path = folder / role / "model.safetensors"
        head, data = read_raw(path)
        head["model.\ud800"] = head.pop(NORM)
        write_raw(path, head, data)


def huge_shape(head: dict[str, Any]) -> None:
    """Numbers whose product has more digits than Python will print."""
    head[NORM]["shape"] = [10**4000, 10**4000]


def hole(head: dict[str, Any]) -> None:
    """The first tensor in the file is shorter than the place to the next."""
    first = min((k for k in head if k != "__metadata__"), key=lambda k: head[k]["data_offsets"][0])
    begin, end = head[first]["data_offsets"]
    head[first] |= {"shape": [(end - begin) // 2 - 8], "data_offsets": [begin, end - 16]}


def overlap(head: dict[str, Any]) -> None:
    """Every tensor after the first begins 16 bytes early, in the one before."""
    items = sorted((k for k in head if k != "__metadata__"), key=lambda k: head[k]["data_offsets"][0])
    for name in items[1:]:
        begin, end = head[name]["data_offsets"]
        head[name]["data_offsets"] = [begin - 16, end - 16]


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
    Case("only a LoRA adapter", only_adapter, ("rlhf", "LoRA", "merge_and_unload")),
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


def plan_in_4_gb(folder: Path) -> Answer:
    """A dry run in a process of its own that may take little time and memory."""
    done = subprocess.run(
        [sys.executable, "-m", "amatax", "merge", "recipe.yaml", "out", "--dry-run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


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


# what is allowed


@pytest.mark.parametrize("ratio", [0.5, 0, 1])
def test_equal_infinities_of_a_mask_are_fine(ratio: float, siblings: Path) -> None:
    """A causal mask that both hold comes out as it is, whatever its ratio."""
    mask = torch.full((4, 4), float("-inf")).triu(1)
    for role in ("sft", "rlhf"):
        edit_tensors(siblings / role, lambda t: t.update({"model.mask": mask}))
    (siblings / "recipe.yaml").write_text(
        "models: {sft: ./sft, rlhf: ./rlhf}\n"
        f"merge: {{ratios: {{blocks: [0.5], overrides: [{{match: model.mask, ratio: {ratio}}}]}}}}\n"
    )
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
    assert torch.equal(load_all(siblings / "out")["model.mask"], mask)


def test_nonfinite_passes_by_its_flag(siblings: Path) -> None:
    poison(float("nan"))(siblings)
    answer = merge_here(siblings, "--allow-nonfinite")
    assert answer.code == 0, answer.err
    merged = load_all(siblings / "out")[DOWN].view(-1)
    assert merged[70].isnan()
    assert merged.isnan().sum() == 1


def test_nan_in_a_copied_tensor(siblings: Path) -> None:
    """Ratio 1 takes rlhf's bytes as they are; NaN is named all the same."""
    poison(float("nan"))(siblings)
    (siblings / "recipe.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 1}\n")
    answer = merge_here(siblings)
    assert_clear(answer)
    assert DOWN in answer.err and "nan" in answer.err


def test_overflow_into_bfloat16(siblings: Path) -> None:
    """Between the largest bfloat16 and the largest float32 lies what only the rounding makes infinite."""
    top = torch.finfo(torch.bfloat16).max
    edit_tensors(siblings / "sft", lambda t: t[DOWN].view(-1).__setitem__(0, 0.0))
    edit_tensors(siblings / "rlhf", lambda t: t[DOWN].view(-1).__setitem__(0, top))
    (siblings / "recipe.yaml").write_text(
        "models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 1.003, extrapolate: true}\n"
    )
    answer = merge_here(siblings)
    if answer.code == 0:
        assert load_all(siblings / "out")[DOWN].isfinite().all(), "an infinity was written without a word"
    else:
        assert_clear(answer)


def test_untie_merges_tied_with_untied(siblings: Path) -> None:
    """The hint works: the tied model's embeddings stand in for its head."""
    embeddings = load_all(siblings / "rlhf")[EMBED].float()
    head = load_all(siblings / "sft")[HEAD].float()
    tied_rlhf(siblings)
    (siblings / "recipe.yaml").write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 0.25, untie: true}\n")
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
    merged = load_all(siblings / "out")[HEAD]
    assert torch.equal(merged, (head - 0.25 * (head - embeddings)).to(merged.dtype))
    assert json.loads((siblings / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_plain_bin_merges_to_the_same_tensors(siblings: Path) -> None:
    """One .bin file, and .bin shards with an index, give what the safetensors give."""
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
    expected = load_all(siblings / "out")
    to_bin(siblings / "sft")
    state = load_all(siblings / "rlhf")
    for path in [*(siblings / "rlhf").glob("model*")]:
        path.unlink()
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for i, half in enumerate(halves, 1):
        file = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({name: state[name] for name in half}, siblings / "rlhf" / file)
        weight_map |= dict.fromkeys(half, file)
    (siblings / "rlhf" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    answer = amatax_here("merge", siblings / "recipe.yaml", siblings / "from_bin")
    assert answer.code == 0, answer.err
    merged = load_all(siblings / "from_bin")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_bin_of_a_big_endian_machine(siblings: Path) -> None:
    """In a process of its own: torch crashes (SIGSEGV) where it swaps the bytes of a tensor that has none."""
    other_byteorder(siblings)
    command = [sys.executable, "-m", "amatax", "inspect", "./rlhf"]
    done = subprocess.run(command, cwd=siblings, capture_output=True, text=True)
    assert_clear(Answer(done.returncode, done.stdout, done.stderr))
    assert "rlhf/pytorch_model.bin" in done.stderr


def test_bin_that_another_program_zipped(siblings: Path) -> None:
    """torch.load reads it; amatax reads the same numbers, or refuses: never bytes of somewhere else."""
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
    expected = load_all(siblings / "out")
    items = bin_items(siblings)
    (siblings / "rlhf" / "pytorch_model.bin").write_bytes(zip_bytes(dict(sorted(items.items()))))
    answer = amatax_here("merge", siblings / "recipe.yaml", siblings / "from_bin")
    if answer.code == 0:
        merged = load_all(siblings / "from_bin")
        assert all(torch.equal(merged[name], expected[name]) for name in expected)
    else:
        assert_clear(answer)
        assert "rlhf/pytorch_model.bin" in answer.err and "nan" not in answer.err


def test_code_in_a_checkpoint_is_never_run_by_merge(siblings: Path) -> None:
    """It is copied; only `verify --load --trust-remote-code` may run it."""
    (siblings / "sft" / "modeling_own.py").write_text(f"import os\nos.mkdir({PWNED!r})\n")
    edit_json(siblings / "sft" / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err
    assert (siblings / "out" / "modeling_own.py").is_file()
    answer = amatax_here("verify", siblings / "out", "--load")
    assert_clear(answer)
    assert "--trust-remote-code" in answer.err
    assert not Path(PWNED).exists()


# damage of a finished folder


def test_verify_says_what_is_damaged(siblings: Path) -> None:
    """Each kind of damage is named; none is a bug."""
    out = siblings / "out"
    assert merge_here(siblings).code == 0
    weights, record = out / "model.safetensors", out / "amatax_record.json"
    good, recorded = weights.read_bytes(), record.read_text()
    for content, word in (
        (good[:-1] + bytes([good[-1] ^ 1]), "not what the recipe gives"),
        (good[:-5], "model.safetensors"),
        (b"", "model.safetensors"),
        (good[:9] + b"!" + good[10:], "header"),
    ):
        weights.write_bytes(content)
        answer = amatax_here("verify", out)
        assert_clear(answer)
        assert word in answer.err
    weights.write_bytes(good)
    for text in ("", "[]", "{}", recorded.replace('"tensors"', '"tensor"'), recorded.replace('"files"', '"file"')):
        record.write_text(text)
        assert_clear(amatax_here("verify", out))
    record.write_text(recorded)
    assert amatax_here("verify", out).code == 0


def test_unreadable_inputs(tmp_path: Path, llama_family: Path) -> None:
    """Without the right to read a file (root without its capabilities, as root may read everything)."""
    from tests.faults.breaking import fresh_copy

    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv")
    for i, locked in enumerate((f"rlhf/{SECOND}", "rlhf/config.json", "rlhf", "recipe.yaml")):
        folder = tmp_path / str(i)
        folder.mkdir()
        fresh_copy(llama_family, folder)
        (folder / locked).chmod(0)
        command = [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "amatax"]
        done = subprocess.run(
            [*command, "merge", "recipe.yaml", "out", "--dry-run"], cwd=folder, capture_output=True, text=True
        )
        (folder / locked).chmod(0o755)
        assert_clear(Answer(done.returncode, done.stdout, done.stderr))
        assert Path(locked).name in done.stderr


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
