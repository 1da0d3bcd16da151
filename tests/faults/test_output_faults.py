"""An output that cannot be written, is taken, or must not be replaced: refused, and nothing of the user's is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, run_amatax
from tests.disks import mounted, small_disk
from tests.faults.breaking import (
    Case,
    amatax_here,
    assert_clear,
    merge_here,
    snapshot,
)
from tests.faults.processes import hard_linked, pause_after, stamps
from tests.forked import Warm

MB = 1 << 20


def put(path: Path, content: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def other_model(folder: Path) -> None:
    shutil.copytree(folder / "sft", folder / "out")


def with_notes(folder: Path) -> None:
    other_model(folder)
    put(folder / "out" / "notes.docx")


def with_photos(folder: Path) -> None:
    other_model(folder)
    put(folder / "out" / "photos" / "cat.jpg")


def a_project(folder: Path) -> None:
    """config.json and code, as many a program has; no weights."""
    for name in ("config.json", "main.py", "README.md", "requirements.txt"):
        put(folder / "out" / name)


def a_git_repository(folder: Path) -> None:
    other_model(folder)
    put(folder / "out" / ".git" / "HEAD")


def points_to(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "out").symlink_to(folder / path)


FORCE = ("--overwrite",)
# Case.name, what stands at `out`, words of the message, arguments
CASES = [
    Case("another model there", other_model, ("out", "another model", "--overwrite")),
    Case("one file of the user's there", lambda f: put(f / "out" / "notes.docx"), ("out", "notes.docx")),
    Case("the user's notes, overwrite", lambda f: put(f / "out" / "notes.docx"), ("out", "notes.docx"), FORCE),
    Case("notes beside a model, overwrite", with_notes, ("out", "notes.docx"), FORCE),
    Case("photos beside a model, overwrite", with_photos, ("out", "photos"), FORCE),
    Case("a program with config.json, overwrite", a_project, ("out",), FORCE),
    Case("a git repository, overwrite", a_git_repository, ("out", ".git"), FORCE),
    Case("a file there", lambda f: put(f / "out"), ("out", "is a file")),
    Case("a file there, overwrite", lambda f: put(f / "out"), ("out", "is a file"), FORCE),
    Case("a link to an input", points_to("sft"), ("out", "overlaps", "sft"), FORCE),
    Case("a link to itself", points_to("out"), ("out",), FORCE),
    Case("the user's files in out.unfinished", lambda f: put(f / "out.unfinished" / "notes.docx"), ("out.unfinished",)),
    Case("the same, overwrite", lambda f: put(f / "out.unfinished" / "notes.docx"), ("out.unfinished",), FORCE),
    Case("a file at out.unfinished", lambda f: put(f / "out.unfinished"), ("out.unfinished",)),
]


def tree(folder: Path) -> dict[str, Any]:
    """Every file and link below, by path, but amatax's own lock and journal."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if (p.is_symlink() or p.is_file()) and ".amatax" not in p.parts
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_taken_output_is_refused(case: Case, siblings: Path) -> None:
    """And nothing that stood anywhere is changed."""
    case.damage(siblings)
    before = tree(siblings)
    answer = merge_here(siblings, *case.args)
    assert_clear(answer)
    for word in case.words:
        assert word in answer.err, f"{word!r} is not in the message\n{answer.err}"
    assert tree(siblings) == before


def test_what_stood_at_out_replaced_is_kept(siblings: Path) -> None:
    """--overwrite needs a place for the old model; the user's own folder of that name is not it."""
    other_model(siblings)
    put(siblings / "out.replaced" / "thesis.tex")
    answer = merge_here(siblings, "--overwrite")
    assert (siblings / "out.replaced" / "thesis.tex").read_text() == "mine", answer.out
    if answer.code != 0:
        assert_clear(answer)


@pytest.mark.parametrize("where", ["sft", "rlhf", ".", "sft/out", "rlhf/deep/er", "sft/../sft/."])
@pytest.mark.parametrize("args", [(), FORCE])
def test_output_over_an_input_is_refused(where: str, args: tuple[str, ...], siblings: Path) -> None:
    """The input itself, a folder in it, or one around it."""
    before = tree(siblings)
    answer = amatax_here("merge", siblings / "recipe.yaml", siblings / where, *args)
    assert_clear(answer)
    assert "overlaps the input" in answer.err
    assert tree(siblings) == before


def test_the_working_directory_is_not_replaced(siblings: Path) -> None:
    """The shell would stand in a folder that is gone."""
    (siblings / "empty").mkdir()
    done = run_amatax("merge", siblings / "recipe.yaml", ".", cwd=siblings / "empty")
    assert done.code == 2
    assert "working directory" in done.err


@pytest.mark.parametrize("suffix", [".unfinished", ".replaced"])
def test_an_input_where_amatax_works_is_kept(suffix: str, siblings: Path) -> None:
    """Beside `out` amatax makes and removes folders of its own: never one that is an input."""
    other_model(siblings)
    (siblings / "sft").rename(siblings / f"out{suffix}")
    (siblings / "recipe.yaml").write_text(f"models: {{sft: ./out{suffix}, rlhf: ./rlhf}}\nmerge: {{ratios: 0.5}}\n")
    before = tree(siblings / f"out{suffix}")
    answer = merge_here(siblings, "--overwrite")
    assert tree(siblings / f"out{suffix}") == before, "an input was destroyed"
    if answer.code != 0:
        assert_clear(answer)


def test_the_base_model_is_an_input_too(siblings: Path) -> None:
    """Named in the recipe, though averaging does not read it: not a place to write."""
    shutil.copytree(siblings / "sft", siblings / "out")
    (siblings / "recipe.yaml").write_text("models: {base: ./out, sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: 0.5}\n")
    before = tree(siblings)
    answer = merge_here(siblings, "--overwrite")
    assert tree(siblings) == before, "the base model was replaced"
    assert_clear(answer)
    assert "overlaps the input" in answer.err


def test_overwrite_replaces_a_model_whole(siblings: Path) -> None:
    """Nothing of the old one is left among the new one's files."""
    assert merge_here(siblings).code == 0
    new = snapshot(siblings / "out")
    shutil.rmtree(siblings / "out")
    shutil.copytree(siblings / "rlhf", siblings / "out")
    put(siblings / "out" / "vocab.json", "{}")
    answer = merge_here(siblings, "--overwrite")
    assert answer.code == 0, answer.err
    assert snapshot(siblings / "out") == new
    assert sorted(p.name for p in siblings.iterdir() if p.name.startswith("out")) == ["out"]


def test_an_empty_folder_is_filled(siblings: Path) -> None:
    (siblings / "out").mkdir()
    answer = merge_here(siblings)
    assert answer.code == 0, answer.err


def test_a_parent_that_is_a_file(siblings: Path) -> None:
    """Executable or not."""
    for mode in (0o644, 0o755):
        put(siblings / "file")
        (siblings / "file").chmod(mode)
        answer = amatax_here("merge", siblings / "recipe.yaml", siblings / "file" / "out")
        assert_clear(answer)
        assert "file" in answer.err
        assert (siblings / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250])
def test_a_name_that_is_too_long(name: str, siblings: Path) -> None:
    """Itself, or with what amatax adds while it works."""
    answer = amatax_here("merge", siblings / "recipe.yaml", siblings / name)
    if answer.code != 0:
        assert_clear(answer)
        assert "xxx" in answer.err


def test_narrow_terminal_encoding(siblings: Path) -> None:
    """A terminal that has no block characters: the merge is done, so it must not end as a bug."""
    for coding in ("ascii", "latin-1"):
        env = {**os.environ, "PYTHONIOENCODING": coding}
        command = [sys.executable, "-m", "amatax", "merge", "recipe.yaml", "out", "--dry-run"]
        done = subprocess.run(command, cwd=siblings, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_on_a_full_disk(siblings: Path, unbuffered: str) -> None:
    """`amatax inspect sft > list.txt` with no space left for the list: said when it is printed, or when it is flushed at the end."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "amatax", "inspect", "sft"]
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, cwd=siblings, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert_clear(Run(done.returncode, "", done.stderr))
    assert "No space left" in done.stderr


# full and read-only disks


def test_a_disk_too_small_is_seen_by_the_plan(siblings: Path) -> None:
    """Before anything is written."""
    with small_disk(siblings / "disk", 4 * MB) as disk:
        answer = amatax_here("merge", siblings / "recipe.yaml", disk / "out")
        assert_clear(answer)
        assert "needs" in answer.err and "free" in answer.err and str(disk) in answer.err
        assert list(disk.iterdir()) == []


def fill(path: Path, leave: int) -> None:
    """Write until the disk is full, then give back so many bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MB))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))


@pytest.fixture
def large(large_family: Path, tmp_path: Path, large_merged: dict[str, bytes]) -> Path:
    return hard_linked(large_family, tmp_path)


def test_a_disk_that_fills_up_meanwhile(large: Path, warm: Warm, large_merged: dict[str, bytes]) -> None:
    """Another file takes the space in the middle; when it is gone, the rerun keeps the finished shards."""
    with small_disk(large / "disk", 80 * MB) as disk:
        job = warm.start(large, "merge", "recipe.yaml", disk / "out")
        pause_after(job, disk / "out.unfinished", 6)
        fill(disk / "other", MB // 2)
        job.send(signal.SIGCONT)
        answer = job.wait()
        assert_clear(answer)
        assert "the disk is full" in answer.err and str(disk) in answer.err and "again" in answer.err
        assert not (disk / "out").exists()
        before = stamps(disk / "out.unfinished")
        assert len(before) >= 6
        answer = warm.run(large, "merge", "recipe.yaml", disk / "out")  # still full: the plan sees it now
        assert_clear(answer)
        (disk / "other").unlink()
        answer = warm.run(large, "merge", "recipe.yaml", disk / "out")
        assert answer.code == 0, answer.err
        after = stamps(disk / "out")
        assert all(after[name] == before[name] for name in before)
        found = snapshot(disk / "out")
        assert all(found[name] == data for name, data in large_merged.items() if not name.startswith("amatax_"))


def test_a_disk_full_for_the_small_files(siblings: Path, warm: Warm) -> None:
    """No byte or few are left after the last shard: config and record fail, and a rerun ends it."""
    seen = 0
    with small_disk(siblings / "disk", 24 * MB) as disk:
        for free in (0, 4096, 8192, 16384, 24576):
            job = warm.start(siblings, "merge", "recipe.yaml", disk / "out", stop_at=5)
            job.stopped()
            fill(disk / "other", free)
            job.send(signal.SIGCONT)
            answer = job.wait()
            if answer.code != 0:
                seen += 1
                assert_clear(answer)
                assert "full" in answer.err or "No space left" in answer.err
                assert not (disk / "out").exists()
            (disk / "other").unlink()
            answer = warm.run(siblings, "merge", "recipe.yaml", disk / "out")
            assert answer.code == 0, answer.err
            shutil.rmtree(disk / "out")
    assert seen >= 2


def limited(cwd: Path, size: int, *args: str) -> Run:
    """`python -m amatax` that may write no file longer than size."""
    done = subprocess.run(
        [sys.executable, "-m", "amatax", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    return Run(done.returncode, done.stdout, done.stderr)


def test_a_limit_on_the_size_of_a_file(siblings: Path) -> None:
    """ulimit -f, or a file system of small files (FAT32): the disk is not full, and smaller shards help."""
    answer = limited(siblings, 200_000, "merge", "recipe.yaml", "out")
    assert_clear(answer)
    assert "model.safetensors" in answer.err or "out" in answer.err
    assert "max_shard_size" in answer.err, answer.err
    assert "disk is full" not in answer.err, answer.err
    assert not (siblings / "out").exists()
    with (siblings / "recipe.yaml").open("a") as file:
        file.write("output: {max_shard_size: 150KB}\n")
    answer = limited(siblings, 200_000, "merge", "recipe.yaml", "out", "--overwrite")
    assert answer.code == 0, answer.err


def test_a_read_only_disk(siblings: Path) -> None:
    """Seen by the plan."""
    (siblings / "place").mkdir()
    with mounted(siblings / "place", "-t", "tmpfs", "-o", "ro,size=64m", "none") as disk:
        answer = amatax_here("merge", siblings / "recipe.yaml", disk / "out")
        assert_clear(answer)
        assert str(disk) in answer.err and "not writable" in answer.err


def test_without_the_right_to_write(tmp_path: Path, llama_family: Path) -> None:
    """The folder around the output is not ours to write (root without its capabilities)."""
    from tests.faults.breaking import fresh_copy

    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv")
    fresh_copy(llama_family, tmp_path)
    (tmp_path / "locked").mkdir(mode=0o555)
    command = [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "amatax"]
    done = subprocess.run(
        [*command, "merge", "recipe.yaml", "locked/out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert_clear(Run(done.returncode, done.stdout, done.stderr))
    assert "locked" in done.stderr and "not writable" in done.stderr


def test_a_mount_point_is_refused(siblings: Path) -> None:
    """It cannot be renamed; a folder inside it can."""
    with small_disk(siblings / "out", 64 * MB) as disk:
        answer = merge_here(siblings)
        assert_clear(answer)
        assert "mount point" in answer.err and str(disk / "model") in answer.err
