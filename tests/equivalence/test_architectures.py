"""What transformers saves, amatax merges and transformers loads again: every tensor of many architectures, against float64.

The expectation owes nothing to amatax: what each tensor is stands in `architectures.py` by hand, the arithmetic is numpy's.
Run as a script (PYTHONPATH=cli:.) it prints the table of architectures in Markdown.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import run_amatax
from tests.equivalence.architectures import ARCHITECTURES, Architecture

RATIOS: dict[str, Any] = {
    "paper": {"blocks": [0.7, 0.4, 0.1], "embeddings": 0, "norms": 0, "head": "mean", "other": 0.25},
    "apart": {"blocks": [0.9, 0.35, 0.6], "embeddings": 1, "norms": 0.15, "head": 0.5, "other": 0},
    "bare": [0.7, 0.4, 0.1],
    "uniform": 0.4,
}
BLOCK_OF_LAYER = {4: (0, 1, 2, 2), 5: (0, 1, 1, 2, 2), 6: (0, 0, 1, 1, 2, 2)}  # floor(kL/3) to floor((k+1)L/3)-1
BLOCK_RATIOS = {"paper": (0.7, 0.4, 0.1), "apart": (0.9, 0.35, 0.6), "bare": (0.7, 0.4, 0.1), "uniform": (0.4,) * 3}
OUTSIDE = {
    "paper": {"embedding": 0.0, "norm": 0.0, "head": 0.4, "other": 0.25},
    "apart": {"embedding": 1.0, "norm": 0.15, "head": 0.5, "other": 0.0},
    "bare": {"embedding": 0.4, "norm": 0.4, "head": 0.4, "other": 0.4},
    "uniform": {"embedding": 0.4, "norm": 0.4, "head": 0.4, "other": 0.4},
}
NORMS_FOLLOW_THEIR_BLOCK = ("bare", "uniform")

MANTISSA = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}  # bits, least exponent


@dataclass
class Family:
    """Siblings on disk, and what was read of them."""

    name: str
    folder: Path
    model_class: Any
    tensors: dict[str, dict[str, torch.Tensor]]  # sft, rlhf
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.name]


# ----------------------------------------------------------------------------------------------------- the siblings


def build_family(name: str, folder: Path) -> Family:
    """Write folder/sft and folder/rlhf the way people do, with every number that is saved set apart."""
    import transformers

    architecture = ARCHITECTURES[name]
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    config, class_name = architecture.build()
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(config).eval()
    for role, shard in (("sft", "5GB"), ("rlhf", architecture.rlhf_shard)):
        _move(model)
        _in_dtype(model, architecture).save_pretrained(folder / role, max_shard_size=shard)
        _drop_keys(folder / role / "config.json", architecture.config_without)
    return Family(name, folder, model_class, {role: read_folder(folder / role) for role in ("sft", "rlhf")})


def _drop_keys(file: Path, keys: tuple[str, ...]) -> None:
    if keys:
        config = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in config.items() if key not in keys}, indent=2))


def _saved(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the state dict once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def _move(model: Any) -> None:
    """Each number by 0.2 to 0.4 in either direction, so that no two ratios give the same tensor; counters by 7."""
    for name, tensor in _saved(model):
        if not tensor.is_floating_point():
            tensor.add_(7)
            continue
        step = 0.2 + 0.2 * torch.rand_like(tensor)
        sign = 1 if name.endswith("running_var") else torch.randint_like(tensor, 2) * 2 - 1
        tensor.add_(step * sign)


def _in_dtype(model: Any, architecture: Architecture) -> Any:
    result = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex rotary tables, which are not saved
        result = result.to(getattr(torch, architecture.dtype))
    for name, exact in _saved(model):
        if any(fnmatchcase(name, pattern) for pattern in architecture.float32):
            owner, _, last = name.rpartition(".")
            setattr(result.get_submodule(owner), last, exact.float())
    return result


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, through the index where there is one; a file must hold what the index says and no more."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        held = load_file(file)
        assert not held.keys() & tensors.keys(), "a tensor is in two shards"
        tensors |= held
        if index.exists():
            promised = json.loads(index.read_text())["weight_map"]
            assert held.keys() == {name for name, at in promised.items() if at == file.name}
    assert len(files) == 1 or index.exists()
    assert not index.exists() or tensors.keys() == json.loads(index.read_text())["weight_map"].keys()
    return tensors


# ---------------------------------------------------------------------------------------------------- the command line


def merge(family: Family, recipe_name: str) -> Path:
    """`amatax merge`: in this process, or as the user's own for the few that say so."""
    out = family.folder / recipe_name
    recipe = family.folder / f"{recipe_name}.yaml"
    wish = {
        "models": {"sft": "./sft", "rlhf": "./rlhf"},
        "merge": {"ratios": RATIOS[recipe_name]},
        "output": {"max_shard_size": family.architecture.out_shard},
    }
    recipe.write_text(yaml.safe_dump(wish, sort_keys=False))
    family.plan = json.loads(command(family, "merge", recipe, out, "--dry-run", "--json", own_process=False))
    assert not out.exists()
    own_process = family.architecture.own_process and recipe_name == "paper"
    command(family, "merge", recipe, out, "--threads", "1", own_process=own_process)
    return out


def command(family: Family, *args: str | Path, own_process: bool) -> str:
    if own_process:
        run = run_amatax(*args, cwd=family.folder)
        assert run.code == 0, run.err
        return run.out
    from typer.testing import CliRunner

    from amatax.commands import app

    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


# ----------------------------------------------------------------------------------------------------- the expectation


def expected_ratio(architecture: Architecture, recipe_name: str, name: str) -> float:
    """By the table and the recipe's definition alone."""
    claims = architecture.claims(name)
    assert len(claims) == 1, f"the table of architectures gives {name!r} {len(claims)} meanings: {claims}"
    kind, layer = claims[0]
    in_its_block = kind == "block" or (kind == "norm" and recipe_name in NORMS_FOLLOW_THEIR_BLOCK)
    if layer is not None and in_its_block:
        return BLOCK_RATIOS[recipe_name][BLOCK_OF_LAYER[architecture.layers][layer]]
    return OUTSIDE[recipe_name][kind]


def float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float64).numpy()


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def ulp(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The distance between neighbours of a dtype at a value."""
    bits, least = MANTISSA[dtype]
    exponent = np.frexp(np.abs(value))[1] - 1  # |value| = 1.x * 2 ** exponent
    return np.ldexp(1.0, np.maximum(np.where(value == 0, least, exponent), least) - bits)


def mixture(sft: torch.Tensor, rlhf: torch.Tensor, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """(1-r) sft + r rlhf in float64, and how far from it a result in sft's dtype may be."""
    a, b = float64(sft), float64(rlhf)
    exact = (1.0 - ratio) * a + ratio * b
    return exact, ulp(exact, sft.dtype) + 2.0**-22 * np.maximum(np.abs(a), np.abs(b))


@dataclass
class Errors:
    """The worst that was seen."""

    in_ulp: float = 0.0  # where nothing cancels: |result| is at least a sixteenth of the larger input
    of_allowed: float = 0.0

    def see(self, sft: torch.Tensor, rlhf: torch.Tensor, exact: np.ndarray, allowed: np.ndarray, found: Any) -> None:
        error = np.abs(float64(found) - exact)
        whole = np.abs(exact) * 16 >= np.maximum(np.abs(float64(sft)), np.abs(float64(rlhf)))
        self.in_ulp = max(self.in_ulp, float(np.max(error / ulp(exact, sft.dtype), initial=0.0, where=whole)))
        self.of_allowed = max(self.of_allowed, float(np.max(error / allowed, initial=0.0)))


def wrong_tensors(family: Family, out: dict[str, torch.Tensor], recipe_name: str, errors: Errors) -> dict[str, str]:
    """Tensor name -> what is wrong with it."""
    sft, rlhf = family.tensors["sft"], family.tensors["rlhf"]
    wrong = {}
    for name, found in out.items():
        a, b = sft[name], rlhf[name]
        ratio = expected_ratio(family.architecture, recipe_name, name)
        if not a.is_floating_point():
            assert raw(a) != raw(b)
            if raw(found) != raw(a):
                wrong[name] = "an integer tensor, and not sft's"
        elif ratio in (0.0, 1.0):
            if raw(found) != raw(a if ratio == 0.0 else b):
                wrong[name] = (
                    f"not bit for bit the one of {'sft' if ratio == 0.0 else 'rlhf'}{_looks_like(a, b, found)}"
                )
        else:
            exact, allowed = mixture(a, b, ratio)
            errors.see(a, b, exact, allowed, found)
            if not np.all(np.abs(float64(found) - exact) <= allowed):
                wrong[name] = f"not at ratio {ratio}{_looks_like(a, b, found)}"
    return wrong


def _looks_like(sft: torch.Tensor, rlhf: torch.Tensor, found: torch.Tensor) -> str:
    a, b = float64(sft), float64(rlhf)
    return f" (looks like {np.median((float64(found) - a) / (b - a)):.3g})"


# ------------------------------------------------------------------------------------------------------ loading again


def load(family: Family, folder: Path) -> tuple[Any, dict[str, Any]]:
    model, info = family.model_class.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {what: list(names) for what, names in info.items() if names}


def logits(family: Family, model: Any) -> torch.Tensor:
    with torch.no_grad():
        inputs = family.architecture.inputs()
        for name in ("pixel_values", "input_features"):
            if name in inputs:
                inputs[name] = inputs[name].to(model.dtype)
        return model(**inputs).logits


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_family(request.param, tmp_path_factory.mktemp(request.param))


def test_the_test_tells_ratios_apart(family: Family) -> None:
    """A tensor merged at another of the recipe's ratios would be noticed: the siblings are far enough apart."""
    architecture = family.architecture
    assert family.tensors["sft"].keys() == family.tensors["rlhf"].keys()
    for recipe_name in ("paper", "apart", "bare"):
        ratios = {*OUTSIDE[recipe_name].values(), *BLOCK_RATIOS[recipe_name]}
        for name, a in family.tensors["sft"].items():
            if a.is_floating_point():
                b = family.tensors["rlhf"][name]
                right = expected_ratio(architecture, recipe_name, name)
                exact, allowed = mixture(a, b, right)
                for other in ratios - {right}:
                    wrong = float64(torch.from_numpy(mixture(a, b, other)[0]).to(a.dtype))
                    assert np.any(np.abs(wrong - exact) > allowed), (name, right, other)


@pytest.mark.parametrize("recipe_name", ["paper", "apart", "bare"])
def test_every_tensor_is_merged_at_its_ratio(family: Family, recipe_name: str) -> None:
    architecture = family.architecture
    before = family.tensors["sft"]
    folder = merge(family, recipe_name)
    after = read_folder(folder)

    assert after.keys() == before.keys()
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    for pattern, count in architecture.holds.items():
        assert sum(fnmatchcase(name, pattern) for name in after) == count, pattern
    if architecture.rlhf_shard != "5GB":
        assert len(list((family.folder / "rlhf").glob("*.safetensors"))) > 1
    if architecture.out_shard != "5GB":
        assert len(list(folder.glob("*.safetensors"))) > 1
    assert family.plan["layers"] == architecture.layers

    wrong = wrong_tensors(family, after, recipe_name, Errors())
    assert not wrong, f"{len(wrong)} of {len(after)} tensors: {dict(list(wrong.items())[:6])}"

    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads((family.folder / "sft" / "config.json").read_text())
    model, info = load(family, folder)
    assert not info
    assert torch.isfinite(logits(family, model)).all()


def test_the_loaded_merge_is_the_average_of_the_loaded_models(family: Family) -> None:
    """Merging files and merging state dicts in memory agree, also where transformers renames or fuses at load."""
    folder = merge(family, "uniform")
    merged, info = load(family, folder)
    assert not info
    sft, rlhf = (load(family, family.folder / role)[0] for role in ("sft", "rlhf"))
    a, b, found = sft.state_dict(), rlhf.state_dict(), merged.state_dict()
    assert found.keys() == a.keys() == b.keys()
    average = {}
    for name, tensor in found.items():
        average[name] = a[name]
        if tensor.is_floating_point():
            exact, allowed = mixture(a[name], b[name], 0.4)
            assert np.all(np.abs(float64(tensor) - exact) <= allowed), name
            average[name] = torch.from_numpy(exact).to(tensor.dtype)
        else:
            assert torch.equal(tensor, a[name]), name

    in_memory = copy.deepcopy(sft)
    in_memory.load_state_dict(average)
    one, other, before = (logits(family, model.float()) for model in (merged, in_memory, sft))
    assert torch.isfinite(one).all()
    # the median token: of two experts with nearly the same score, one rounding of a weight can choose the other for some token
    apart, moved = ((one - logits_).abs().amax(-1).median() for logits_ in (other, before))
    assert apart <= 0.02 * moved, "further from the average in memory than from sft"


# ------------------------------------------------------------------------------------------------------------- table


def table(folder: Path, names: list[str]) -> Iterator[str]:
    """Rows of Markdown: the merge at the paper's settings."""
    yield "| architecture | class | dtype | tensors | layers | merged / copied | worst error, ulp | of allowed | wrong | missing / unexpected / other |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for name in names:
        family = build_family(name, folder / name)
        architecture = family.architecture
        try:
            out = merge(family, "paper")
        except AssertionError as error:
            yield f"| {name} | {family.model_class.__name__} | | | | refused: {' '.join(str(error).split())} |"
            continue
        after = read_folder(out)
        errors = Errors()
        wrong = wrong_tensors(family, after, "paper", errors)
        _, info = load(family, out)
        copies = sum(t["copy_of"] is not None for t in family.plan["tensors"].values())
        missing, unexpected = len(info.pop("missing_keys", [])), len(info.pop("unexpected_keys", []))
        shards = (
            f", {len(list((family.folder / 'rlhf').glob('*.safetensors')))} shards"
            if architecture.rlhf_shard != "5GB"
            else ""
        )
        yield (
            f"| {name} | {family.model_class.__name__} | {architecture.dtype}{shards} | {len(after)} of {len(family.tensors['sft'])} "
            f"| {family.plan['layers']} | {len(after) - copies} / {copies} | {errors.in_ulp:.3f} | {errors.of_allowed:.3f} "
            f"| {len(wrong)} | {missing} / {unexpected} / {sum(map(len, info.values()))} |"
        )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        for line in table(Path(temporary), sys.argv[1:] or list(ARCHITECTURES)):
            print(line, flush=True)
