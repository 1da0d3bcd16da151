"""What can be wrong with a checkpoint's files, each as a function of the siblings' folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.breaking import (
    DOWN,
    FIRST,
    HEAD,
    INDEX,
    NORM,
    SECOND,
    edit_header,
    edit_json,
    edit_tensors,
    load_all,
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
