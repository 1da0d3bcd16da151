"""What the fault tests share: a case, the command line in this process, and safetensors files written byte by byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Run

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
LAST = "model-00003-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.0.input_layernorm.weight"  # in FIRST
DOWN = "model.layers.0.mlp.down_proj.weight"  # in FIRST
EMBED = "model.embed_tokens.weight"  # in FIRST
HEAD = "lm_head.weight"  # in LAST


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        name: what is wrong, for people.
        damage: does it to a folder with sft, rlhf and recipe.yaml.
        words: all of them must stand in the message.
        args: further arguments of `amatax merge`.
        never: none of them may stand in the message.
    """

    name: str
    damage: Callable[[Path], None]
    words: tuple[str, ...]
    args: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def amatax_here(*args: str | Path) -> Run:
    """`amatax ARGS` in this process: much faster than one of its own."""
    from typer.testing import CliRunner

    from amatax.commands import app

    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return Run(done.exit_code, done.stdout, done.stderr)


def merge_here(folder: Path, *args: str | Path) -> Run:
    """Merge folder/recipe.yaml into folder/out."""
    return amatax_here("merge", folder / "recipe.yaml", folder / "out", *args)


def assert_clear(answer: Run) -> None:
    """The user's fault, said in one message: cause first, next step last, no traceback."""
    shown = f"exit {answer.code}\n{answer.out}\n{answer.err}"
    assert "Traceback" not in answer.err, shown
    assert "bug in amatax" not in answer.err, shown
    assert answer.code == 2, shown
    said = answer.err.strip("\n").split("\n")
    lines = said[
        next((i for i, line in enumerate(said) if line.startswith("amatax: ")), 0) :
    ]  # after what was said on the way
    assert lines[0].startswith("amatax: "), shown
    assert lines[-1].startswith("  -> "), f"no next step\n{shown}"
    count = int(lines[0].split()[1]) if lines[0].endswith(" faults") else 1
    assert sum(line.startswith("  -> ") for line in lines) == count, f"a fault without a next step\n{shown}"


def assert_refused(case: Case, folder: Path) -> None:
    """Damage the folder, merge, and look at the message and at what was left."""
    case.damage(folder)
    answer = merge_here(folder, *case.args)
    assert_clear(answer)
    for word in case.words:
        assert word in answer.err, f"{word!r} is not in the message\n{answer.err}"
    for word in case.never:
        assert word not in answer.err, f"{word!r} is in the message\n{answer.err}"
    assert not (folder / "out").exists()


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_raw(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file; the data stays."""
    header, data = read_raw(path)
    change(header)
    write_raw(path, header, data)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load_all(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint of safetensors files, by safetensors' own reader."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def save_one(folder: Path, tensors: dict[str, Any]) -> None:
    """Replace a checkpoint's weights by one safetensors file."""
    from safetensors.torch import save_file

    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's tensors by name, and save it as one file."""
    tensors = load_all(folder)
    change(tensors)
    save_one(folder, tensors)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fresh_copy(family: Path, target: Path) -> Path:
    """The siblings and their recipe, to be damaged."""
    for name in ("sft", "rlhf"):
        shutil.copytree(family / name, target / name)
    (target / "recipe.yaml").write_text(RECIPE)
    return target


RECIPE = "models:\n  sft: ./sft\n  rlhf: ./rlhf\nmerge:\n  ratios: [0.7, 0.4, 0.1]\n"
