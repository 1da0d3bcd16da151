"""A sweep: its points are what is merged and loaded, and whatever stops it, it ends as if nothing had."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from amatax import api
from amatax.api.common import Watcher
from amatax.errors import AmataxError, OutputError
from amatax.evaluation.sweeping import JOURNAL, Swept
from tests.disks import mounted
from tests.evaluation.nll import COUNT, Task, tasks_of
from tests.fitting.conftest import FAMILY, RECIPE

ROOT = Path(__file__).resolve().parents[2]


class Noting(Watcher):
    """What a sweep tells."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.totals: list[int] = []
        self.done = 0

    def start(self, total: int) -> None:
        self.totals.append(total)

    def advance(self, n: int) -> None:
        self.done += n

    def say(self, text: str) -> None:
        self.said.append(text)


def sweep(folder: Path, measured: Path, recipe: Any = RECIPE, **options: Any) -> Swept:
    return api.sweep(recipe, folder, **{"alpha": "0,0.3", "device": "cpu", "open_tasks": tasks_of(measured), **options})


def journal(folder: Path) -> bytes:
    return (folder / JOURNAL).read_bytes()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's, written in float32."""
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(RECIPE.read_text().replace("./family", str(FAMILY)) + "\noutput: {dtype: float32}\n")
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep, with a fit."""
    folder = tmp_path_factory.mktemp("whole")
    again(folder, recipe, distilled)
    return folder


def again(folder: Path, recipe: Path, data: Path, **options: Any) -> Swept:
    wishes = {"alpha": "0,0.3", "ways": ["uniform", "fitted"], "data": data, "blocks": [2]}
    return sweep(folder, data, recipe, **{**wishes, **options})


def test_a_point_is_what_is_merged_and_loaded(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    """Every sample's numbers, exactly, in float32; fitted points, parts and the two models included."""
    shutil.copytree(whole, tmp_path / "s")
    swept = again(tmp_path / "s", recipe, distilled, ways=["uniform", "parts", "fitted"], alpha="0.3")
    names = [point.name for point in swept.results.points]
    parts = [f"parts-{part} 0.3" for part in ("input", "middle", "output")]
    assert names == ["sft", "rlhf", "uniform 0.3", *parts, "fitted-2 0.3"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(FAMILY / "sft")
    tasks = tasks_of(distilled)(None, tokenizer=tokenizer, device=torch.device("cpu"))
    for point in swept.results.points:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        api.merge(swept.recipes[point.name], tmp_path / "out")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
        for task in tasks:
            want, found = task.run(model, lambda n: None), point.measured[task.measure.name]
            assert np.array_equal(found.sums, want.sums), (point.name, task.measure.name)
            assert (found.samples, found.responses) == (want.samples, want.responses)
    fitted = swept.results.points[-1]
    assert fitted.alpha == 0.3
    assert sum(value for name, value in fitted.ratios.items() if name.startswith("blocks")) == pytest.approx(0.6)


def test_a_journal_cut_off_anywhere_goes_on(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    """Every beginning of the journal is what some kill leaves; the rest comes out the same, to the byte."""
    want = journal(whole)
    dice = random.Random(0)
    for i, at in enumerate([5, *(dice.randrange(len(want)) for _ in range(2)), len(want) - 1]):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder)
        (folder / JOURNAL).write_bytes(want[:at])
        again(folder, recipe, distilled)
        assert journal(folder) == want, at


def test_a_finished_sweep_runs_nothing(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    watcher = Noting()
    swept = again(folder, recipe, distilled, watcher=watcher)
    assert (swept.measured, watcher.said, watcher.totals) == (0, [], [])
    assert journal(folder) == journal(whole)
    assert [p.name for p in swept.results.points] == ["sft", "rlhf", "uniform 0", "uniform 0.3", "fitted-2 0.3"]
    assert all(p.measured.keys() == {"nll", "length"} for p in swept.results.points)


def test_more_points_cost_only_themselves(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    watcher = Noting()
    swept = sweep(folder, distilled, recipe, alpha="0,0.3,0.7,1", watcher=watcher)
    assert swept.measured == 2  # uniform 0.7 by both measures; uniform 1 is RLHF, which is known
    assert watcher.totals == [2 * COUNT] == [watcher.done]
    ends = {point.name: point.measured for point in swept.results.points}
    assert np.array_equal(ends["uniform 1"]["nll"].sums, ends["rlhf"]["nll"].sums)
    assert journal(folder).startswith(journal(whole))


def test_killed_and_started_again(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, in the fit too, until a run ends by itself."""
    folder, dice = tmp_path / "s", random.Random(os.getpid())
    command = [sys.executable, "-m", "tests.evaluation.nll", str(distilled), "sweep", str(recipe), "-o", str(folder)]
    command += ["--alpha", "0,0.3", "--with", "uniform,fitted", "--data", str(distilled), "--blocks", "2"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
    kills = [dice.randrange(6, 9), dice.randrange(15, 24)]  # lines of the journal: while it fits, while it measures
    for lines in kills:
        process = subprocess.Popen([*command, "--device", "cpu", "--quiet"], cwd=ROOT, env=env)
        while process.poll() is None and count(folder) < lines:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.3)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run([*command, "--device", "cpu", "--json"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert journal(folder) == journal(whole)
    table = {point["name"]: point["values"]["nll"] for point in json.loads(done.stdout)["points"]}
    for point in again(folder, recipe, distilled).results.points:
        nats, tokens = point.measured["nll"].sums.sum(0)
        assert table[point.name] == nats / tokens


def count(folder: Path) -> int:
    try:
        return journal(folder).count(b"\n")
    except FileNotFoundError:
        return 0


def copied(folder: Path, distilled: Path) -> tuple[Path, Path, Path]:
    """(a recipe, data, results) of a test's own, swept."""
    for role in ("sft", "rlhf"):
        shutil.copytree(FAMILY / role, folder / role)
    recipe = folder / "r.yaml"
    recipe.write_text("models: {sft: ./sft, rlhf: ./rlhf}\nmerge: {ratios: {blocks: [0.5], embeddings: 0}}\n")
    data = Path(shutil.copy(distilled, folder / "d.jsonl"))
    sweep(folder / "s", data, recipe, alpha="0.5")
    return recipe, data, folder / "s"


def test_what_has_changed_is_named(distilled: Path, tmp_path: Path) -> None:
    recipe, data, folder = copied(tmp_path, distilled)
    before = journal(folder)

    def refused(said: str, **options: Any) -> None:
        with pytest.raises(OutputError, match=said) as caught:
            sweep(folder, data, recipe, alpha="0.5,0.6", **options)
        assert "--overwrite" in caught.value.hint
        assert journal(folder) == before

    text = data.read_text()
    data.write_text(text.replace("a", "e", 1))
    refused(r"another measure nll \(settings.sha256: ")
    data.write_text(text)
    refused(r"another measure nll \(settings.count: 12 -> 5\)", open_tasks=tasks_of(data, 5))
    recipe.write_text(recipe.read_text().replace("embeddings: 0", "embeddings: 1"))
    refused(r"another recipe \(ratios.embeddings: 0.0 -> 1.0\)")
    recipe.write_text(recipe.read_text().replace("embeddings: 1", "embeddings: 0"))
    file = tmp_path / "rlhf" / "model.safetensors"
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refused(r"another model rlhf \(files\[0\]\[3\]")
    swept = sweep(folder, data, recipe, alpha="0.5,0.6", overwrite=True)
    assert swept.measured == 8
    assert (tmp_path / "s" / JOURNAL).read_bytes() != before


def test_fit_data_that_have_changed_are_named(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    other = tmp_path / "d.jsonl"
    other.write_text("".join(distilled.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(OutputError, match="another fit data"):
        sweep(folder, distilled, recipe, alpha="0,0.3", ways=["uniform", "fitted"], data=other, blocks=[2])
    with pytest.raises(OutputError, match=r"another fit seed \(0 -> 1\)"):
        again(folder, recipe, distilled, seed=1)


def test_what_a_fit_is_asked_for_and_has_changed_is_named(
    whole: Path, recipe: Path, distilled: Path, tmp_path: Path
) -> None:
    """The recipe's `fit`, where something is fitted: what held the old samples out, and fitted the old blocks, is not used again."""
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    other = tmp_path / "r.yaml"

    def asked(fit: str, **options: Any) -> Swept:
        other.write_text(f"{recipe.read_text()}\nfit: {fit}\n")
        wishes = {"alpha": "0,0.3", "ways": ["uniform", "fitted"], "data": distilled, "blocks": [2]}
        return sweep(folder, distilled, other, **{**wishes, **options})

    (tmp_path / "h.jsonl").write_text(distilled.read_text().splitlines()[0])
    before = journal(folder)
    for fit, said, options in (
        ("{holdout: 0.3}", r"another fit holdout \(0.2 -> 0.3\)", {}),
        ("{holdout: h.jsonl}", r"another fit holdout \(0.2 -> \"", {}),
        (f"{{prompts: {distilled}}}", r"another fit data's responses \(\"there\" -> \"sampled\"\)", {"data": None}),
    ):
        with pytest.raises(OutputError, match=said) as caught:
            asked(fit, **options)
        assert "--overwrite" in caught.value.hint
        assert journal(folder) == before
    other.write_text(
        recipe.read_text().replace("[0.7, 0.5, 0.3]", '[{layers: "0-1", ratio: 0.7}, {layers: "2-8", ratio: 0.3}]')
    )
    with pytest.raises(OutputError, match="another recipe"):
        again(folder, other, distilled, blocks=[])  # two blocks of other layers are called fitted-2, too
    assert asked("{holdout: 0.2, alpha: 0.7, blocks: 5}").measured == 0  # the points say what these are
    assert asked("{holdout: 0.3}", ways=["uniform"]).measured == 0
    assert journal(folder) == before


def test_blocks_of_one_name_are_told_apart(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    """Two even blocks, and the two whose layers the recipe writes out."""
    from amatax.evaluation.fits import fit_facts
    from amatax.evaluation.points import numbers, wanted_points
    from amatax.fitting.options import FitOptions
    from amatax.planning.plan import make_plan
    from amatax.recipes.loading import load_recipe

    other = tmp_path / "r.yaml"
    ranges = '[{layers: "0-1", ratio: 0.7}, {layers: "2-8", ratio: 0.3}]'
    other.write_text(recipe.read_text().replace("[0.7, 0.5, 0.3]", ranges))
    wanted = load_recipe(other)
    facts = [
        fit_facts(
            wanted,
            other,
            wanted_points(wanted, numbers("0.3", "--alpha"), ["fitted"], blocks=blocks),
            FitOptions(data=distilled),
            make_plan(wanted),
        )["fit blocks of fitted-2"]
        for blocks in ([2], [])
    ]
    assert facts == [2, "as in the ratios"]


def test_a_measure_that_writes_to_the_model_is_found(distilled: Path, tmp_path: Path) -> None:
    def open_tasks(*arguments: Any, **options: Any) -> list[Task]:
        first, *_ = tasks_of(distilled)(*arguments, **options)

        def run(model: Any, tick: Any) -> Any:
            found = first.run(model, tick)
            next(model.parameters()).data[0, 0] += 1
            return found

        return [first._replace(run=run)]

    for _ in range(2):  # nor is it known the next time
        with pytest.raises(AmataxError, match="nll at sft has written to the model's weights"):
            sweep(tmp_path, distilled, open_tasks=open_tasks)


def test_somebody_elses_file_stays(distilled: Path, tmp_path: Path) -> None:
    for text in ("mine\n", "mine", '{"sweep": 2}\n'):
        (tmp_path / JOURNAL).write_text(text)
        with pytest.raises(OutputError, match="no journal"):
            sweep(tmp_path, distilled)
        assert (tmp_path / JOURNAL).read_text() == text


def test_two_runs_into_one_folder(distilled: Path, tmp_path: Path) -> None:
    from amatax.evaluation.journal import Journal

    Journal(tmp_path / JOURNAL)
    with pytest.raises(OutputError, match="another run"):
        sweep(tmp_path, distilled)


def test_faults_come_before_the_work(distilled: Path, tmp_path: Path) -> None:
    for said, options in (
        ("10 ratios for a model of 9 layers", {"grid": "0", "blocks": [10]}),
        ("10 blocks for a model of 9 layers", {"ways": ["fitted"], "blocks": [10], "data": distilled}),
        ("no data to fit on", {"ways": ["fitted"]}),
        ("needs --keep", {"ways": ["tax-aware"], "data": distilled}),
    ):
        with pytest.raises(AmataxError, match=said):
            sweep(tmp_path / "s", distilled, **options)
        assert not (tmp_path / "s").exists()


def test_a_preview_writes_nothing(distilled: Path, tmp_path: Path) -> None:
    wishes = {"alpha": "0:1:0.5", "ways": ["uniform", "fitted"], "blocks": [3, 9], "data": distilled, "device": "cpu"}
    ahead = api.preview_sweep(RECIPE, tmp_path / "s", open_tasks=tasks_of(distilled), **wishes)
    assert [point.name for point in ahead.points][2:] == [
        "uniform 0",
        "uniform 0.5",
        "uniform 1",
        "fitted-3 0.5",
        "fitted-9 0.5",
    ]
    assert list(ahead.fits) == ["fitted-3 0.5", "fitted-9 0.5"]
    assert ahead.samples_left == 7 * 2 * COUNT
    size = sum(file.stat().st_size for file in (FAMILY / "sft").glob("*.safetensors"))
    assert ahead.memory.held == pytest.approx(2 * size, rel=0.02)
    assert ahead.memory.live == pytest.approx(2 * size, rel=0.02)  # float32 on the CPU
    assert not (tmp_path / "s").exists()


def state(folder: Path) -> dict[str, Any]:
    """Everything that a folder holds, with its times."""
    files = [folder, *sorted(folder.rglob("*"))]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes() if p.is_file() else b"") for p in files}


def ahead(folder: Path, recipe: Path, data: Path, **options: Any) -> Any:
    wishes = {"alpha": "0,0.3", "ways": ["uniform", "fitted"], "data": data, "blocks": [2], "device": "cpu"}
    return api.preview_sweep(recipe, folder, **{"open_tasks": tasks_of(data), **wishes, **options})


def test_a_preview_only_reads(whole: Path, recipe: Path, distilled: Path, tmp_path: Path) -> None:
    """A journal that a crash cut off, which another run holds: what it would do is said, and every byte and time stays."""
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    lines = journal(whole).splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    before = state(folder)
    with (folder / JOURNAL).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = ahead(folder, recipe, distilled)
        assert list(found.left) == [("fitted-2 0.3", "length")]
        assert found.fits == []
        with pytest.raises(OutputError, match=r"another fit seed \(0 -> 1\)") as caught:
            ahead(folder, recipe, distilled, seed=1)
        assert "--overwrite" in caught.value.hint
        with pytest.raises(OutputError, match=r"another measure nll \(settings.count: 12 -> 5\)"):
            ahead(folder, recipe, distilled, open_tasks=tasks_of(distilled, 5))
        assert len(ahead(folder, recipe, distilled, seed=1, overwrite=True).left) == 10
    assert state(folder) == before
    for text in ("mine\n", "mine"):
        (folder / JOURNAL).write_text(text)
        with pytest.raises(OutputError, match="no journal"):
            ahead(folder, recipe, distilled)


def test_a_preview_of_a_folder_that_cannot_be_written(
    whole: Path, recipe: Path, distilled: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "s", "--bind", "-o", "ro", str(whole)) as folder:
        with pytest.raises(OSError, match="Read-only"):
            (folder / "x").touch()
        assert ahead(folder, recipe, distilled).left == []


def test_tax_aware_points(distilled: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.jsonl"
    keep.write_text("".join((FAMILY / "data" / "keep.jsonl").read_text().splitlines(keepends=True)[:10]))
    options = {"ways": ["tax-aware"], "alpha": "0.5", "data": distilled, "keep": keep, "blocks": [2]}
    swept = sweep(tmp_path / "s", distilled, **options)
    (point,) = swept.results.points[2:]
    assert (point.name, point.kind, point.alpha) == ("tax-aware-2 0.5", "tax-aware-2", 0.5)
    record = swept.recipes[point.name].record["fit"]
    assert record["keep"]["weight"] == 1
    assert yaml.safe_load(next((tmp_path / "s" / "fits").glob("*.yaml")).read_text())["record"]["fit"] == record
