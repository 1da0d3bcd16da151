"""`--preset paper`, the regulariser of C.5, the memory estimate: what fit-ratios does when it is asked for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from amatax import api
from amatax.commands.fit_ratios import report_lines
from amatax.errors import AmataxError
from amatax.fitting import estimate
from tests.conftest import run_amatax
from tests.fitting.test_fit import RECIPE


@pytest.fixture
def few(distilled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(f"{line}\n" for line in distilled.read_text().splitlines()[:10]))
    return path


def test_the_papers_way(few: Path, tmp_path: Path) -> None:
    """It moves, keeps the mean, and goes where the likelihood grows; at its own rate it hardly moves at all."""
    command = [
        "fit-ratios",
        str(RECIPE),
        "--data",
        few,
        "--preset",
        "paper",
        "--eps",
        "0.2",
        "--holdout",
        "0",
        "--json",
    ]
    done = run_amatax(*command, "-o", "slow.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    (slow,) = done.json["fits"]
    assert 0 < max(abs(v - 0.4) for v in slow["values"]) < 0.005
    assert (
        "Adam, rate 4e-05, eps 0.2"
        in yaml.safe_load((tmp_path / "slow.yaml").read_text())["record"]["fit"]["optimiser"]
    )
    done = run_amatax(*command, "--rate", "0.1", "-o", "fast.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    (fast,) = done.json["fits"]
    assert fast["fitted"]["fitted"] < slow["fitted"]["fitted"] < slow["fitted"]["uniform"]
    for found in (slow, fast):
        assert sum(found["values"]) == pytest.approx(1.2, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "paper"], ["Eq. 13 with eps 0.1", "needs eps 0.1111", "--eps 0.1112"]),
        (["--preset", "paper", "--eps", "0.2", "--alpha", "1"], ["at alpha 1 there is nothing to fit"]),
        (["--preset", "other"], ["--preset other", "`paper`"]),
        (["--preset", "paper", "--free-head"], ["--preset paper and --free-head"]),
        (["--regulariser", "-1"], ["a regulariser of -1"]),
        (["--regulariser", "1", "--keep", "few.jsonl", "--keep-weight", "1"], ["--regulariser and --keep"]),
    ],
)
def test_faults(few: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = run_amatax("fit-ratios", RECIPE, "--data", few, "-o", "f.yaml", *arguments, cwd=tmp_path)
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "->" in done.err


def test_a_strong_regulariser_is_uniform_averaging(few: Path, tmp_path: Path) -> None:
    wishes = {"data": few, "alpha": 0.4, "holdout": 0, "device": "cpu"}
    free = api.fit_ratios(RECIPE, tmp_path / "free.yaml", **wishes).fits[0].fit
    held = api.fit_ratios(RECIPE, tmp_path / "held.yaml", regulariser=10.0, **wishes).fits[0].fit
    assert max(abs(v - 0.4) for v in free.values) > 0.1
    assert max(abs(v - 0.4) for v in held.values) < 0.01


def test_an_early_end_has_no_intervals_and_a_ratio_in_the_penaltys_corner_none(few: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["models"] = {role: str((RECIPE.parent / path).resolve()) for role, path in recipe["models"].items()}
    recipe["merge"]["ratios"] = {"blocks": [{"layers": "0-4", "ratio": 0.3}, {"layers": "5-8", "ratio": 0.2}]}
    wishes = {"data": few, "alpha": 0.4, "holdout": 0.0, "device": "cpu"}
    for name, other, said in (
        ("paper", {"preset": "paper"}, 0),
        ("held", {"regulariser": 5.0}, 2),
    ):
        (found,) = api.fit_ratios(recipe, tmp_path / f"{name}.yaml", **wishes, **other).fits
        assert found.fit.intervals == [None, None]
        text = "\n".join(report_lines(found))
        assert text.count("the regulariser holds it at the mean") == said
        assert ("95 % interval" in text) == bool(said)


def test_too_little_memory_is_told_before_the_models_are_loaded(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 10_000_000)
    with pytest.raises(AmataxError, match=r"about \d\.\d GB on cpu .* and 0.0 GB are free") as caught:
        api.fit_ratios(RECIPE, tmp_path / "f.yaml", data=few, device="cpu")
    assert "--checkpointing, or --batch-tokens" in (caught.value.hint or "")
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(AmataxError) as caught:
        api.fit_ratios(RECIPE, tmp_path / "f.yaml", data=few, device="cpu")
    assert "--shard" in (caught.value.hint or "")

    def told(**wishes: Any) -> float:
        with pytest.raises(AmataxError) as caught:
            api.fit_ratios(RECIPE, tmp_path / "f.yaml", data=few, device="cpu", batch_tokens=10**6, **wishes)
        return float(re.findall(r"tokens (\d+\.\d)\)", str(caught.value))[0])

    assert told(keep=few, keep_weight=1.0) > told()


def test_the_estimate_is_what_a_pass_takes(few: Path) -> None:
    """Within a factor of two of what autograd keeps for one batch."""
    import transformers

    from tests.conftest import tiny_llama

    config = tiny_llama()
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 2)
    stored = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in stored:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.randint(1, config.vocab_size, (1, 256))).logits
        loss = logits.log_softmax(-1).sum()
    told = estimate.activation_bytes(config, 256, torch.float32, checkpointing=False)
    assert told / 2 < sum(sizes.values()) < told * 2
    assert estimate.activation_bytes(config, 256, torch.float32, checkpointing=True) < told
    kept = estimate.activation_bytes(config, 256, torch.float32, checkpointing=False, divergence=True)
    assert kept - told == 2 * 4 * 256 * config.vocab_size  # measured: 1.95 such copies more
    del loss


def test_free_memory_is_what_the_machine_says() -> None:
    free = estimate.free_bytes(torch.device("cpu"))
    assert free is None or 1e8 < free < 1e14


def test_methods_that_cannot_be_fitted_are_refused(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method file of one's own, without a slope: said before the models are loaded."""
    from amatax import methods

    (tmp_path / "midpoint.py").write_text(
        'NEEDS = ("sft", "rlhf")\n\n\ndef midpoint(tensors, ratio, out=None):\n    return tensors["sft"]\n'
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods.method_names.cache_clear()
    recipe = {"models": yaml.safe_load(RECIPE.read_text())["models"], "merge": {"method": "midpoint"}}
    recipe["models"] = {role: str((RECIPE.parent / path).resolve()) for role, path in recipe["models"].items()}
    try:
        with pytest.raises(AmataxError, match="cannot fit the method 'midpoint'"):
            api.fit_ratios(recipe, tmp_path / "f.yaml", data=few, device="cpu")
    finally:
        methods.method_names.cache_clear()
