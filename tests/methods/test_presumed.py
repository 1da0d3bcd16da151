"""Tensors that are parallel, as slerp presumes: gone through once, and the same numbers as when nothing is presumed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from amatax import api
from amatax.evaluation.live import LiveModel
from amatax.methods import Chunks, bind
from amatax.methods.slerp import presume
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from amatax.streaming.buffers import Files
from tests.methods.family import Counting, recipe, tensors

PRESUME = "amatax.methods.slerp.presume"
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
F8 = torch.float8_e4m3fn
RECORD = "amatax_record.json"
PIECES = 3


@given(
    seed=st.integers(0, 1 << 32),
    change=st.sampled_from([0.0, 1e-3, 0.02, 0.0299, 0.03, 0.0316, 0.0317, 0.05, 1.0]),
    scale=st.sampled_from([1.0, 0.02, 1e-7, 1e-20, 1e-30, 1e-44, 1e4, 1e19, 1e38, 1e160]),
    late=st.booleans(),
    special=st.sampled_from([None, 0.0, float("inf"), float("nan"), 1e30]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    out=st.sampled_from(DTYPES),
)
def test_who_is_sure_is_right(
    seed: int,
    change: float,
    scale: float,
    late: bool,
    special: float | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    out: torch.dtype,
) -> None:
    """Whatever the numbers: as large as they get, or lost in the dtype; parallel but for the last chunk."""
    draws = torch.Generator().manual_seed(seed)
    sft, other = (torch.randn(PIECES, 500, generator=draws, dtype=torch.float64) * scale for _ in range(2))
    rlhf = sft + change * other
    if late:
        rlhf[:-1] = sft[:-1]
    if special is not None:
        sft[-1, 7] = special
    sft, rlhf = sft.to(dtypes[0]), rlhf.to(dtypes[1])
    _, sure = presume()
    found = all(
        sure({"sft": one, "rlhf": two}, torch.empty(500, dtype=out)) for one, two in zip(sft, rlhf, strict=True)
    )
    wide = [{"sft": one.double(), "rlhf": two.double()} for one, two in zip(sft, rlhf, strict=True)]
    prepare = bind("slerp", {}).prepare
    assert prepare is not None
    if found:
        assert prepare(Chunks(sft.numel(), lambda every, first: iter(wide)), 0.4) is None
    if special is None and scale in (1.0, 0.02) and change <= 0.02 and torch.float16 not in dtypes:
        assert found


@pytest.mark.parametrize(
    ("chunks", "found"),
    [
        ([([1.0, 1.0], [1.02, 0.98]), ([1.0], [1.02])], True),
        ([([1.0, 1.0], [1.04, 0.96])], False),
        (
            [([1.0, 1.0], [1.028, 0.972]), ([0.01, 0.01], [0.038, -0.018])],
            False,
        ),  # each is small beside all, both are not
        ([([1e-22] * 400, [1.05e-22, 0.95e-22] * 200)], False),  # float32 takes the changes' squares for 0
        ([([0.0, 0.0], [0.0, 0.0])], False),
    ],
)
def test_sure(chunks: list[tuple[list[float], list[float]]], found: bool) -> None:
    _, sure = presume()
    seen = [{"sft": torch.tensor(one), "rlhf": torch.tensor(other)} for one, other in chunks]
    assert all(sure(chunk, torch.empty_like(chunk["sft"])) for chunk in seen) is found


def test_changes_that_the_narrower_dtype_has_not() -> None:
    sft = torch.full((400,), 5e-7, dtype=torch.float16)
    _, sure = presume()
    rlhf = sft.float() + 2e-8 * torch.tensor([1.0, -1.0] * 200)
    assert not sure({"sft": sft, "rlhf": rlhf}, torch.empty_like(sft))


def test_norms_that_float16_has_not() -> None:
    """The change's is 1.41 of its smallest number, SFT's 1.73."""
    for sft, change in (([42.0, 0.0, 0.0], [0.0, 1.0, 1.0]), ([1.0, 1.0, 1.0], [0.04, -0.04, 0.02])):
        one = (torch.tensor(sft) * 2.0**-24).half()
        other = one.float() + torch.tensor(change) * 2.0**-24
        _, sure = presume()
        assert not sure({"sft": one, "rlhf": other.half() if max(change) == 1 else other}, torch.empty(3))


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    usual: Callable[..., None] = Files.read

    def read(files: Files, path: Path, into: memoryview, offset: int) -> None:
        seen.append(len(into))
        usual(files, path, into, offset)

    monkeypatch.setattr(Files, "read", read)
    return seen


def trained(family: Path, at: Path, rows: slice, by: float) -> None:
    """The family's siblings, but that RLHF is SFT with some rows changed."""
    for role in ("base", "sft"):
        (at / role).symlink_to(family / role)
    (at / "rlhf").mkdir()
    for file in (family / "rlhf").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, at / "rlhf" / file.name)
            continue
        there = load_file(family / "sft" / file.name)
        draws = torch.Generator().manual_seed(3)
        for x in there.values():
            if x.is_floating_point():
                x[rows] += (by * x.float().std().nan_to_num() * torch.randn(x[rows].shape, generator=draws)).to(x.dtype)
        save_file(there, at / "rlhf" / file.name, {"format": "pt"})


def small_model(at: Path, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Two siblings in a parallel direction, of two tensors, and a recipe."""
    for role, change, dtype in zip(("sft", "rlhf"), (0.0, 0.001), dtypes, strict=True):
        (at / role).mkdir()
        (at / role / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
        numbers = torch.randn(1024, 512, generator=torch.Generator().manual_seed(1)) + change
        names = ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")
        save_file({name: numbers.to(dtype) for name in names}, at / role / "model.safetensors")
    text = "models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {method: slerp, ratios: 0.3}\noutput: {dtype: bfloat16}\n"
    (at / "r.yaml").write_text(text)


def test_parallel_tensors_are_read_once(family_of_three: Path, tmp_path: Path, bytes_read: list[int]) -> None:
    trained(family_of_three, tmp_path, slice(None), 0.01)
    watcher = Counting()
    api.merge(recipe(tmp_path, tmp_path, "slerp"), tmp_path / "out", watcher=watcher, threads=1)
    assert sum(bytes_read) == watcher.total == watcher.told > 0


@pytest.mark.parametrize(("rows", "by"), [(slice(None), 3.0), (slice(-1, None), 100.0)])
def test_others_are_begun_anew(
    family_of_three: Path,
    tmp_path: Path,
    bytes_read: list[int],
    monkeypatch: pytest.MonkeyPatch,
    rows: slice,
    by: float,
) -> None:
    """Some at once, and some in their last chunk: files, record and progress as if nothing was presumed."""
    monkeypatch.setattr("amatax.streaming.stream.CPU_ELEMENTS", 1 << 12)
    trained(family_of_three, tmp_path, rows, by)
    watcher, made = Counting(), recipe(tmp_path, tmp_path, "slerp")
    api.merge(made, tmp_path / "out", watcher=watcher, threads=2)
    assert watcher.told == watcher.total > 0
    with_presumption = sum(bytes_read)
    monkeypatch.delattr(PRESUME)
    bytes_read.clear()
    api.merge(made, tmp_path / "plain", threads=2)
    assert with_presumption > sum(bytes_read)
    one, other = tensors(tmp_path / "out"), tensors(tmp_path / "plain")
    assert all(torch.equal(one[name], other[name]) for name in other)
    records = [(tmp_path / name / "amatax_record.json").read_bytes() for name in ("out", "plain")]
    assert records[0] == records[1]


def test_checks_of_tensors_that_are_begun_anew(
    family_of_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge is merged again by `verify` and by the live model, from the first byte again where it was not as presumed."""
    monkeypatch.setattr("amatax.streaming.stream.CPU_ELEMENTS", 1 << 12)
    trained(family_of_three, tmp_path, slice(-1, None), 100.0)
    made = recipe(tmp_path, tmp_path, "slerp")
    api.merge(made, tmp_path / "out", threads=2)
    found = api.verify(tmp_path / "out")
    assert found.compared and not found.different
    LiveModel.open(make_plan(load_recipe(made))).check()


@pytest.mark.parametrize("dtypes", [(F8, F8), (F8, torch.bfloat16), (torch.bfloat16, F8)])
def test_float8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """torch has neither differences nor norms of it."""
    small_model(tmp_path, dtypes)
    api.merge(tmp_path / "r.yaml", tmp_path / "out")
    monkeypatch.delattr(PRESUME)
    api.merge(tmp_path / "r.yaml", tmp_path / "plain")
    assert (tmp_path / "out" / RECORD).read_bytes() == (tmp_path / "plain" / RECORD).read_bytes()


def test_copies_are_not_looked_at(family_of_three: Path, tmp_path: Path, bytes_read: list[int]) -> None:
    """In another dtype they are converted chunk by chunk, as if they were merged."""
    watcher = Counting()
    made = recipe(family_of_three, tmp_path, "slerp", ratios=0, dtype="float32")
    api.merge(made, tmp_path / "out", watcher=watcher, threads=1)
    assert sum(bytes_read) == watcher.total == watcher.told > 0


def test_parallel_tensors_start_no_compiler(tmp_path: Path) -> None:
    """numba takes a second and 130 MB."""
    small_model(tmp_path, (torch.bfloat16, torch.bfloat16))
    script = "import sys; from amatax import api; api.merge('r.yaml', 'out'); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
