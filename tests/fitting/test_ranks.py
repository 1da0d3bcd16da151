"""Two processes by torchrun fit what one process fits, with both models whole in each, or spread over them."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import run_amatax
from tests.faults.breaking import snapshot
from tests.fitting.conftest import FAMILY
from tests.fitting.test_fit import RECIPE
from tests.forked import FITTING, forks
from tests.ranked import each_rank, torchrun

COMMAND = ["fit-ratios", str(RECIPE), "--data", "few.jsonl", "--blocks", "2", "--batch-tokens", "400", "--json"]


@pytest.fixture(scope="module")
def alone(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    few(distilled, folder)
    done = run_amatax(*COMMAND, "-o", "f.yaml", cwd=folder)
    assert done.code == 0, done.err
    return done.json["fits"][0]


def few(distilled: Path, folder: Path) -> None:
    (folder / "few.jsonl").write_text("".join(f"{line}\n" for line in distilled.read_text().splitlines()[:14]))


@pytest.mark.parametrize("wish", [[], ["--shard"]], ids=["whole in each", "spread"])
def test_two_processes_find_what_one_finds(
    distilled: Path, tmp_path: Path, alone: dict[str, Any], wish: list[str]
) -> None:
    few(distilled, tmp_path)
    command = ["-m", "amatax", *COMMAND, "-o", "f.yaml", *wish]
    if wish:
        done = torchrun(tmp_path, 2, *command)
    else:
        done, other = each_rank(tmp_path, 2, *command, imported=FITTING)
        assert (other.code, other.out) == (0, ""), other.err
    assert done.code == 0, done.err
    found = json.loads(done.out)["fits"][0]  # one report, not two
    for part in ("fitted", "held_out"):
        for name in ("sft", "rlhf", "uniform", "fitted"):
            assert found[part][name] == pytest.approx(alone[part][name], abs=1e-6), (part, name)
    assert found["values"] == pytest.approx(alone["values"], abs=1e-3)  # where the likelihood is flat
    assert yaml.safe_load((tmp_path / "f.yaml").read_text())["merge"]["ratios"] == found["values"]
    assert not list(tmp_path.glob("*unfinished*"))


PASS = """
import json, sys
import torch
from pathlib import Path
from amatax.fitting.libraries import import_libraries
import_libraries()
from amatax.fitting.likelihood import measure
from amatax.fitting.merged_model import load_merged_model
from amatax.fitting.ranks import joined
from amatax.fitting.records import read_records
from amatax.fitting.samples import tokenize
from amatax.fitting.tokens import open_tokenizer
from amatax.fitting.variables import choose_variables, tensor_groups
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from amatax.streaming.processes import rank_and_world

plan = make_plan(load_recipe(sys.argv[1]))
variables = choose_variables(plan.ratios, plan.model, 3, groups=True, free_head=True, weigh_by_layers=False)
records, _ = read_records(Path("few.jsonl"), responses=True)
samples, _ = tokenize(records[:7], open_tokenizer(plan.checkpoints["sft"]), raw=False)
with joined():
    merged = load_merged_model(
        plan, *tensor_groups(plan, variables), compute=torch.float32, sharded=sys.argv[2] == "sharded"
    )
    with torch.no_grad():
        merged.variables.copy_(torch.tensor([0.9, 0.2, 0.6, 0.7, 0.35, 0.5, 0.8]))
    found = {}
    for name, wishes in {"nll": {}, "kl": {"divergence": True}}.items():  # 7 batches: one process has one more
        passed = measure(merged, samples, gradient=True, batch_tokens=1, **wishes)
        found[name] = [passed.sums.tolist(), passed.gradient.tolist()]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in merged.model.parameters()]
    found["held"] = sum(p.numel() for p in local)
    if rank_and_world()[0] == 0:
        print(json.dumps(found))
"""


def test_gradients_are_those_of_one_process(distilled: Path, tmp_path: Path) -> None:
    """To 1e-6 in float32; where the models are spread, each process holds half of both."""
    few(distilled, tmp_path)
    (tmp_path / "one.py").write_text(PASS)
    single = forks(*FITTING).python(tmp_path, "one.py", RECIPE, "whole").wait()
    assert single.code == 0, single.err
    want = json.loads(single.out)
    for way, share in (("whole", 1), ("sharded", 0.5)):
        done, other = each_rank(tmp_path, 2, "one.py", RECIPE, way, imported=FITTING)
        assert (done.code, other.code) == (0, 0), done.err + other.err
        found = json.loads(done.out)
        for part in ("nll", "kl"):
            for one, other in zip(found[part], want[part], strict=True):
                assert one == pytest.approx(other, rel=1e-6, abs=1e-6), (way, part)
        assert found["held"] == pytest.approx(share * want["held"], rel=0.02)


def test_one_process_cannot_spread(distilled: Path, tmp_path: Path) -> None:
    few(distilled, tmp_path)
    done = run_amatax(*COMMAND, "-o", "f.yaml", "--shard", cwd=tmp_path)
    assert done.code == 2
    assert "--shard needs several processes" in done.err
    assert "torchrun" in done.err


@pytest.mark.parametrize("wish", [["--data", "bad.jsonl"], ["--alpha", "1.5"], ["--blocks", "99"]])
def test_one_of_them_tells_what_is_wrong(distilled: Path, tmp_path: Path, wish: list[str]) -> None:
    few(distilled, tmp_path)
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    command = ["-m", "amatax", *COMMAND, "-o", "f.yaml", *wish]
    done, other = each_rank(tmp_path, 2, *command, imported=FITTING)
    assert (done.code, other.code) == (2, 2)
    assert done.err.startswith("amatax: ") and "rank" not in done.err
    assert other.out + other.err == ""


def test_what_one_of_them_alone_cannot_do_ends_all(distilled: Path, tmp_path: Path) -> None:
    """A file that one machine has not: the other one does not wait for ever."""
    few(distilled, tmp_path)
    (tmp_path / "there.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "if os.environ['RANK'] == '1':\n    Path('elsewhere').mkdir()\n    os.chdir('elsewhere')\n"
        "from amatax.__main__ import main\nmain()\n"
    )
    done, other = each_rank(tmp_path, 2, "there.py", *COMMAND, "-o", tmp_path / "f.yaml", imported=FITTING)
    assert (done.code, other.code) == (2, 2)
    assert done.err.startswith("amatax: rank 1 (") and "few.jsonl: no such file" in done.err
    assert other.err == ""


def test_nor_of_a_merge_that_fits_first(distilled: Path, tmp_path: Path) -> None:
    few(distilled, tmp_path)
    (tmp_path / "r.yaml").write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\nfit: {{blocks: 2, data: few.jsonl, holdout: 0}}\n"
    )
    (tmp_path / "broken.py").write_text(
        "import os\nfrom amatax.errors import AmataxError\nimport amatax.fitting.job as job\n"
        "def broken(*_):\n    raise AmataxError('no room here', 'make some')\n"
        "if os.environ['RANK'] == '1':\n    job.fill_in = broken\n"
        "from amatax.__main__ import main\nmain()\n"
    )
    done, other = each_rank(tmp_path, 2, "broken.py", "merge", "r.yaml", "out", "--fit", "-q", imported=FITTING)
    assert (done.code, other.code) == (2, 2)
    assert done.err.startswith("amatax: rank 1 (") and done.err.endswith("): no room here\n  -> make some\n")
    assert other.err == ""


@pytest.mark.parametrize("command", ["fit-ratios", "merge"])
def test_nor_of_one_that_fails_among_the_others(distilled: Path, tmp_path: Path, command: str) -> None:
    """The first one alone opens the journal, which another run has."""
    few(distilled, tmp_path)
    (tmp_path / "r.yaml").write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\nfit: {{blocks: 2, data: few.jsonl, holdout: 0}}\n"
    )
    wish = ["out", "--fit"] if command == "merge" else ["-o", "out.fitted.yaml"]
    with (tmp_path / "out.fitted.yaml.unfinished.jsonl").open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        done, other = each_rank(tmp_path, 2, "-m", "amatax", command, "r.yaml", *wish, "-q", imported=FITTING)
    assert (done.code, other.code) == (2, 2)
    assert done.err.startswith("amatax: out.fitted.yaml: another run is fitting into this recipe")
    assert other.err == ""


def test_two_processes_fit_and_then_merge(distilled: Path, tmp_path: Path) -> None:
    """`merge --fit`: one report, and what each of them merges has the ratios that were fitted; again, nothing is done."""
    few(distilled, tmp_path)
    (tmp_path / "r.yaml").write_text(
        f"models: {{sft: {FAMILY}/sft, rlhf: {FAMILY}/rlhf}}\noutput: {{max_shard_size: 300KB}}\n"
        "fit: {alpha: 0.5, blocks: 2, data: few.jsonl, holdout: 0}\n"
    )
    for words in ("merged into out", "finished already"):
        answers = each_rank(tmp_path, 2, "-m", "amatax", "merge", "r.yaml", "out", "--fit", imported=FITTING)
        assert [a.code for a in answers] == [0, 0], answers
        assert answers[0].out.count(words) == 1
        assert answers[1].out + answers[1].err == ""
    ratios = yaml.safe_load((tmp_path / "out.fitted.yaml").read_text())["merge"]["ratios"]
    recorded = yaml.safe_load((tmp_path / "out" / "amatax_recipe.yaml").read_text())["merge"]["ratios"]["blocks"]
    assert recorded == ratios and sum(ratios) == pytest.approx(1.0, abs=1e-12)
    assert run_amatax("merge", "out.fitted.yaml", "alone", cwd=tmp_path).code == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "alone")
