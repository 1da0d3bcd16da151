"""kl in a sweep: the one live model is SFT for a while, no other is loaded, and the numbers are those of a model of its own."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from amatax import api
from amatax.checkpoints.opening import open_checkpoint
from amatax.evaluation import likelihoods, tasks
from amatax.evaluation.live import LiveModel, holds_sft
from amatax.fitting.loading import load_model
from amatax.planning.plan import make_plan
from amatax.recipes.loading import load_recipe
from tests.evaluation.test_live import MODELS, bits, family
from tests.fitting.conftest import FAMILY

# nats of a sample: two models of the same bits round the head's products apart (its inputs are bit for bit the same)
ROUNDING = 5e-5


def whole_models() -> int:
    gc.collect()
    return sum(issubclass(type(thing), transformers.GenerationMixin) for thing in gc.get_objects())


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """kl along SFT's answers in the data, and along those that it gives first."""
    rows = [json.loads(line) for line in (FAMILY / "data" / "keep.jsonl").read_text().splitlines()[:12]]
    (tmp_path / "k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    wanted = {
        "models": {"sft": str(FAMILY / "sft"), "rlhf": str(FAMILY / "rlhf")},
        "merge": {"ratios": [0.7, 0.5, 0.3]},
        "output": {"dtype": "float32"},
        "measures": {
            "kl": {"measure": "kl", "data": "k.jsonl"},
            "own": {"measure": "kl", "data": "p.jsonl", "max_new_tokens": 8},
        },
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(wanted))
    return path


def counted(most: list[int]) -> Callable[..., list[tasks.Task]]:
    """The real tasks; the models that there are when each has ended are counted."""

    def open_tasks(*arguments: Any, **options: Any) -> list[tasks.Task]:
        def counting(task: tasks.Task) -> tasks.Task:
            def run(model: Any, tick: Any) -> Any:
                found = task.run(model, tick)
                most.append(whole_models())
                return found

            return task._replace(run=run)

        return [counting(task) for task in tasks.open_tasks(*arguments, **options)]

    return open_tasks


def test_no_other_model_and_the_same_numbers(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, most = whole_models(), list[int]()
    monkeypatch.setattr(likelihoods, "HELD", 1 << 16)  # a batch at a time: there and back several times
    monkeypatch.setattr(likelihoods, "BATCH_TOKENS", 256)
    monkeypatch.setattr(api.sweeping, "_tasks", with_tasks(api.sweeping._tasks, counted(most)))
    swept = api.sweep(recipe, tmp_path / "s", alpha="0,0.4", device="cpu")
    assert len(most) == 6  # SFT, RLHF and 0.4, by two measures
    assert max(most) - before == 1
    ahead = api.preview_sweep(recipe, tmp_path / "t", alpha="0.4", device="cpu")
    assert ahead.memory.beside == 0
    for point in swept.results.points:
        api.merge(swept.recipes[point.name], tmp_path / point.name)
        alone = api.evaluate([tmp_path / point.name], measures=recipe, sft=str(FAMILY / "sft"), device="cpu")
        for name, found in alone.points[0].measured.items():
            assert np.abs(point.measured[name].sums - found.sums).max() < ROUNDING, (point.name, name)
            assert (found.sums[:, 0].sum() > 0.1) == (point.name in ("rlhf", "uniform 0.4"))


def with_tasks(made: Callable[..., Any], opener: Any) -> Callable[..., Any]:
    return lambda _, *arguments: made(opener, *arguments)


@pytest.mark.parametrize("name", MODELS)
def test_sft_for_a_while(tmp_path: Path, name: str) -> None:
    """SFT's very numbers, whatever transformers makes of its tensors and however narrow the merge's, and the merge again after it."""
    made = load_recipe({**family(tmp_path, name, "float32"), "output": {"dtype": "bfloat16"}})
    plan = make_plan(made)
    assert not holds_sft(plan)
    assert holds_sft(plan, torch.float32)
    live = LiveModel.open(plan, dtype=torch.float32)
    sft = load_model(open_checkpoint(str(tmp_path / "sft")), dtype=torch.float32).state_dict()
    before = {name: bits(tensor).clone() for name, tensor in live.model.state_dict().items()}
    with live.sft() as model:
        assert model is live.model
        assert all(torch.equal(bits(tensor), bits(sft[name])) for name, tensor in model.state_dict().items())
    assert all(torch.equal(before[name], bits(tensor)) for name, tensor in live.model.state_dict().items())
    live.check()
    with pytest.raises(ValueError, match="in between"), live.sft():
        raise ValueError("in between")
    assert live.plan is None
    live.set(0.5)
    live.check()


def test_a_model_of_its_own_where_it_must_be(recipe: Path, tmp_path: Path) -> None:
    """RLHF's config is another: a model with it would not be SFT. The estimate counts the one that is loaded."""
    shutil.copytree(FAMILY / "rlhf", tmp_path / "rlhf")
    config = json.loads((tmp_path / "rlhf" / "config.json").read_text())
    (tmp_path / "rlhf" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    wanted = yaml.safe_load(recipe.read_text())
    wanted["models"]["rlhf"] = str(tmp_path / "rlhf")
    wanted["output"]["config"] = "rlhf"
    recipe.write_text(yaml.safe_dump(wanted))
    ahead = api.preview_sweep(recipe, tmp_path / "s", alpha="0.4", device="cpu")
    assert ahead.memory.beside > 0
    swept = api.sweep(recipe, tmp_path / "s", alpha="0.4", device="cpu")
    api.merge(swept.recipes["uniform 0.4"], tmp_path / "m")
    alone = api.evaluate([tmp_path / "m"], measures=recipe, sft=str(FAMILY / "sft"), device="cpu").points[0]
    assert np.abs(swept.results.points[2].measured["kl"].sums - alone.measured["kl"].sums).max() < ROUNDING
