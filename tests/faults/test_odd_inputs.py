"""Odd checkpoints that are fine, or are by a flag; and what `verify` says of a damaged folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.faults.breaking import (
    DOWN,
    EMBED,
    HEAD,
    SECOND,
    amatax_here,
    assert_clear,
    edit_json,
    edit_tensors,
    load_all,
    merge_here,
)
from tests.faults.damage import (
    PWNED,
    bin_items,
    other_byteorder,
    poison,
    tied_rlhf,
    to_bin,
    zip_bytes,
)

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


@pytest.mark.parametrize("method", ["average", "ties", "dare"])
def test_a_nan_has_the_same_bits_in_every_chunk(siblings: Path, method: str) -> None:
    """By a compiled loop in a large chunk, by torch in the small rest of a tensor, by vectors or one by one."""
    count = (1 << 18) + 1001
    for role, share in (("base", 0.0), ("sft", 1.0), ("rlhf", 2.0)):
        if role == "base":
            shutil.copytree(siblings / "sft", siblings / "base")
        numbers = torch.full((count,), share, dtype=torch.bfloat16)
        if role == "rlhf":
            numbers[[5, 77_777, -700, -1]] = float("nan")
        edit_tensors(siblings / role, lambda t, numbers=numbers: t.update({"model.extra": numbers}))
    options = ", base: ./base" if method != "average" else ""
    (siblings / "recipe.yaml").write_text(
        f"models: {{sft: ./sft, rlhf: ./rlhf{options}}}\nmerge: {{method: {method}, ratios: 0.5}}\n"
    )
    answer = merge_here(siblings, "--allow-nonfinite")
    assert answer.code == 0, answer.err
    merged = load_all(siblings / "out")["model.extra"]
    assert torch.equal(merged.isnan().nonzero()[:, 0], torch.tensor([5, 77_777, count - 700, count - 1]))
    assert set(merged[merged.isnan()].view(torch.int16).tolist()) == {0x7FC0}


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
    assert_clear(Run(done.returncode, done.stdout, done.stderr))
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
        assert_clear(Run(done.returncode, done.stdout, done.stderr))
        assert Path(locked).name in done.stderr
