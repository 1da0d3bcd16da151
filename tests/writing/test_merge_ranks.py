"""`amatax merge` by several processes: the bytes of one, one voice, and whatever a rank dies of, a rerun continues."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amatax.errors import OutputError
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from amatax.streaming import ranks
from amatax.writing.workplace import shared_workplace, workplace
from tests.conftest import run_amatax
from tests.faults.breaking import DOWN, assert_clear, edit_tensors, snapshot
from tests.faults.processes import finished, stamps
from tests.ranked import each_rank, script, torchrun, torchrun_command, who_finished

MERGE = ("merge", "recipe.yaml", "out")
RECIPE = "models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: [0.7, 0.4, 0.1]}\noutput: {max_shard_size: 40KB}\n"


@pytest.fixture(scope="module")
def family(llama_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Siblings, and what one process makes of them in `one`."""
    folder = tmp_path_factory.mktemp("ranks")
    for role in ("sft", "rlhf"):
        shutil.copytree(llama_family / role, folder / role)
    (folder / "recipe.yaml").write_text(RECIPE)
    assert run_amatax("merge", "recipe.yaml", "one", cwd=folder).code == 0
    assert finished(folder / "one") >= 9
    return folder


@pytest.fixture
def home(family: Path) -> Iterator[Path]:
    """The same place, for merges that must write the same bytes: a record names its inputs. Its inputs are not to be changed."""
    yield family
    for path in [*family.glob("out*"), *family.glob("again*")]:
        shutil.rmtree(path)
    (family / "finished.log").unlink(missing_ok=True)


@pytest.fixture
def place(family: Path, tmp_path: Path) -> Path:
    """The siblings in a folder of their own, to be changed."""
    for role in ("sft", "rlhf"):
        shutil.copytree(family / role, tmp_path / role)
    shutil.copy(family / "recipe.yaml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bytes_as_one_process(home: Path, world: int) -> None:
    """Every file; each rank does a part of the work; the first one speaks. A finished merge ends at once, for all of them."""
    if world == 2:
        done = torchrun(home, world, script(home), *MERGE, "--json")
    else:
        done, *others = each_rank(home, world, script(home), *MERGE, "--json")
        assert all((other.code, other.out + other.err) == (0, "") for other in others), others
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert json.loads(done.out)["shards_kept"] == 0  # one report
    assert snapshot(home / "out") == snapshot(home / "one")
    assert [p.name for p in home.iterdir() if p.name.startswith("out")] == ["out"]
    found = who_finished(home)
    assert found.keys() == {p.name for p in (home / "out").glob("*.safetensors")}
    counts = [list(found.values()).count(rank) for rank in range(world)]
    assert max(counts) - min(counts) <= 2, counts
    if world == 2:
        before = stamps(home / "out")
        answers = each_rank(home, world, "-m", "amatax", *MERGE)
        assert [a.code for a in answers] == [0, 0]
        assert "finished already" in answers[0].out and answers[1].out == ""
        assert stamps(home / "out") == before


def test_killed_interrupted_and_continued_by_any_number_of_ranks(home: Path) -> None:
    """Three ranks, of which one is killed (-9); then two, interrupted (Ctrl-C); then one process, or three. What was finished stays."""
    rank = script(
        home,
        "def finished():\n"
        "    if os.environ.get('DIE') == str(rank) and done == 2:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(0.4)\n",
    )
    done = torchrun(home, 3, rank, *MERGE, env={"DIE": "1"})
    assert done.code != 0
    assert done.err.count("ended by SIGTERM") == 1 and "what was finished is kept" in done.err
    assert "SIGKILL" in done.err and done.out == ""
    assert not (home / "out").exists()
    killed = stamps(home / "out.unfinished")
    assert set(who_finished(home).values()) == {0, 1, 2}

    job = subprocess.Popen(torchrun_command(2, rank, *MERGE), cwd=home, stderr=subprocess.PIPE, text=True)
    while finished(home / "out.unfinished") < len(killed) + 2:
        assert job.poll() is None, job.stderr and job.stderr.read()
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert f"continuing: {len(killed)} of" in err
    assert err.count("interrupted\n  -> run the same command again") == 1, err
    assert "KeyboardInterrupt" not in err, err
    kept = stamps(home / "out.unfinished")
    assert killed.items() < kept.items()
    assert who_finished(home).keys() == kept.keys() - killed.keys()
    assert len(kept) < finished(home / "one")

    script(home)
    for world in (1, 3):
        shutil.copytree(home / "out.unfinished", home / "again.unfinished", copy_function=os.link)
        if world == 1:
            answer = run_amatax("merge", "recipe.yaml", "again", cwd=home)
        else:
            answer = each_rank(home, world, rank, "merge", "recipe.yaml", "again")[0]
            assert kept.keys().isdisjoint(who_finished(home))
        assert answer.code == 0, answer.err
        assert f"continuing: {len(kept)} of" in answer.err
        assert kept.items() <= stamps(home / "again").items()
        assert snapshot(home / "again") == snapshot(home / "one")
        assert not (home / "again.unfinished").exists()
        shutil.rmtree(home / "again")


def test_ranks_that_mean_different_merges(place: Path) -> None:
    """Another recipe, other input files, another version: every rank ends with 2, the first one says which differ in what."""
    for role in ("sft", "rlhf"):
        shutil.copytree(place / role, place / "copy" / role)
    (place / "copy" / "recipe.yaml").write_text(RECIPE)
    (place / "other.yaml").write_text(RECIPE.replace("0.4", "0.5"))
    rank = script(
        place,
        "if rank == 1:\n    sys.argv[2] = 'other.yaml'\n"
        "if rank == 2:\n    sys.argv[2] = 'copy/recipe.yaml'\n"
        "if rank == 3:\n    import amatax.api.ranks\n    amatax.api.ranks.__version__ = '9.9'\n",
    )
    answers = each_rank(place, 4, rank, *MERGE)
    assert [a.code for a in answers] == [2, 2, 2, 2]
    assert_clear(answers[0])
    assert all(a.out + a.err == "" for a in answers[1:]), answers
    recipe, inputs, version = re.findall(r"^rank (\d.*)$", answers[0].err, re.MULTILINE)
    assert recipe.startswith("1 ") and "merge.ratios.blocks" in recipe and "0.5" in recipe and "inputs" not in recipe
    assert inputs.startswith("2 ") and "inputs.sft.model.safetensors.time" in inputs and "merge.ratios" not in inputs
    assert version.startswith("3 ") and "amatax: 9.9 instead of" in version and "inputs" not in version
    assert not list(place.glob("out*"))


def test_a_fault_of_one_rank_alone(place: Path) -> None:
    """Its machine lacks a folder: all end with 2 at once, and the rank is named."""
    (place / "far.yaml").write_text(RECIPE.replace("./sft", "./nowhere"))
    answers = each_rank(place, 2, script(place, "if rank == 1:\n    sys.argv[2] = 'far.yaml'\n"), *MERGE)
    assert [a.code for a in answers] == [2, 2]
    assert "rank 1 (" in answers[0].err and "far.yaml:1" in answers[0].err and "nowhere" in answers[0].err
    assert answers[1].err == ""
    assert not list(place.glob("out*"))


def test_a_rank_that_sees_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is not on a file system that all machines share: there is no folder, or another run's."""
    monkeypatch.setattr(ranks, "VISIBLE", 0.2)
    plan, output = make_plan(load_recipe(place / "recipe.yaml"), place / "out"), place / "out"
    with pytest.raises(OutputError, match="does not show here"), shared_workplace(plan, output, 1, "token"):
        pass
    with workplace(plan, output) as work:
        work.begin(overwrite=False)
        token = work.invite(2)
        with shared_workplace(plan, output, 1, token) as other:
            assert other.folder == work.folder
        with pytest.raises(OutputError, match="does not show here"), shared_workplace(plan, output, 1, token[::-1]):
            pass


def test_nan_in_one_ranks_shard(place: Path) -> None:
    """The others stop soon, what is finished is kept, the error comes once; one process ends what two began."""
    name = DOWN.replace("layers.0", "layers.5")
    edit_tensors(place / "sft", lambda t: t[name].view(-1).__setitem__(0, float("nan")))
    rank = script(place, "def finished():\n    time.sleep(0.5)\n")
    answers = each_rank(place, 2, rank, *MERGE)
    assert [a.code for a in answers] == [2, 2]
    assert_clear(answers[0])
    assert name in answers[0].err and "rank " in answers[0].err and answers[1].err == ""
    kept = stamps(place / "out.unfinished")
    done = run_amatax(*MERGE, "--allow-nonfinite", cwd=place)
    assert done.code == 0, done.err
    assert kept and kept.items() <= stamps(place / "out").items()


def test_an_input_that_changes_under_one_rank(place: Path) -> None:
    rank = script(
        place,
        "def finished():\n    if rank == 1 and done == 1:\n        os.utime('rlhf/config.json'); [os.utime(f'rlhf/{n}') for n in os.listdir('rlhf')]\n    time.sleep(0.3)\n",
    )
    answers = each_rank(place, 2, rank, *MERGE)
    assert [a.code for a in answers] == [2, 2]
    assert_clear(answers[0])
    assert "changed during the merge" in answers[0].err and answers[1].err == ""
    assert not (place / "out").exists()


def test_the_first_rank_is_gone(place: Path) -> None:
    """And with it the store: the other one ends too, says so, and keeps what is finished."""
    rank = script(
        place,
        "def finished():\n    if rank == 0 and done == 2:\n        os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(0.5)\n",
    )
    answers = each_rank(place, 2, rank, *MERGE)
    assert [a.code for a in answers] == [-signal.SIGKILL, 2]
    assert answers[1].err.count("the connection to the first process is lost") == 1
    kept = stamps(place / "out.unfinished")
    assert len(kept) > 2
    assert run_amatax(*MERGE, cwd=place).code == 0
    assert kept.items() <= stamps(place / "out").items()


def test_one_shard(place: Path) -> None:
    """The other rank has nothing to do, and a note says what would let it help."""
    (place / "recipe.yaml").write_text(RECIPE.replace("40KB", "5GB"))
    answers = each_rank(place, 2, script(place), *MERGE)
    assert [a.code for a in answers] == [0, 0], answers
    assert "output.max_shard_size" in answers[0].out and answers[1].out + answers[1].err == ""
    assert list(who_finished(place).values()) == [0]
    assert run_amatax("merge", "recipe.yaml", "one", cwd=place).code == 0
    assert snapshot(place / "out") == snapshot(place / "one")
