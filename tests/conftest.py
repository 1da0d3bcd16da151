"""Shared pieces: tiny siblings saved by transformers, and the command line run as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.forked import FITTING, MERGING, READ_AT_START, Run, forks

__all__ = ["Run", "run_amatax", "save_siblings", "tiny_llama", "write_recipe"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch is imported, as a fit does: threads that wait do not spin
settings.register_profile("amatax", deadline=None)  # no timings in tests
settings.load_profile("amatax")

# a shell that starts the tests in the background has SIGINT ignored, and the commands under test would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_amatax(
    *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, cold: bool = False
) -> Run:
    """`amatax ARGS` in a process of its own.

    Most are forks of a process that has made the imports (two seconds and more, for most commands more than their work);
    `cold` starts Python, and so does a variable that is read when Python or torch starts.
    """
    env = {"COLUMNS": "120", **(env or {})}
    if sys.platform == "linux" and not cold and not any(name.startswith(READ_AT_START) for name in env):
        fits = args[:1] in (("distill",), ("fit-ratios",)) or {"--fit", "--load", "--prompt"} & set(map(str, args))
        fits = fits and not any(name.startswith("HF_") for name in env)  # transformers imports huggingface_hub
        return forks(*(FITTING if fits else MERGING)).run(cwd or Path.cwd(), *args, env=env)
    done = subprocess.run(
        [sys.executable, "-m", "amatax", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def amatax(tmp_path: Path) -> Callable[..., Run]:
    """Run the command line in the test's folder."""

    def run(*args: str | Path, **kwargs: Any) -> Run:
        return run_amatax(*args, **{"cwd": tmp_path, **kwargs})

    return run


def save_siblings(
    folder: Path, config: Any, *, shard: str = "5GB", dtype: str = "bfloat16", spread: float = 0.02
) -> None:
    """Write folder/sft (one file) and folder/rlhf (in shards): one architecture, weights a fine-tune apart."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    name = config.architectures[0] if config.architectures else None
    model_class = getattr(transformers, name) if name else transformers.AutoModelForCausalLM
    model = model_class(config) if name else model_class.from_config(config)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder / "sft")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter, dtype=torch.float32).to(parameter.dtype) * spread)
    model.save_pretrained(folder / "rlhf", max_shard_size=shard)


def write_recipe(folder: Path, ratios: Any, name: str = "recipe.yaml", **extra: Any) -> Path:
    """A recipe over folder/sft and folder/rlhf; `extra` are further keys of `merge`."""
    import yaml

    recipe = {"models": {"sft": "./sft", "rlhf": "./rlhf"}, "merge": {"ratios": ratios, **extra}}
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def tiny_llama(**changes: Any) -> Any:
    """Six layers of Llama."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 160,
    }
    return LlamaConfig(architectures=["LlamaForCausalLM"], **{**sizes, **changes})


@pytest.fixture(scope="session")
def llama_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only pair of Llama siblings: `sft` in one file, `rlhf` in several shards."""
    folder = tmp_path_factory.mktemp("llama")
    save_siblings(folder, tiny_llama(), shard="150KB")
    return folder


@pytest.fixture
def siblings(llama_family: Path, tmp_path: Path) -> Path:
    """A copy of the Llama siblings that a test may damage, with a recipe beside them."""
    import shutil

    for name in ("sft", "rlhf"):
        shutil.copytree(llama_family / name, tmp_path / name)
    write_recipe(tmp_path, [0.7, 0.4, 0.1])
    return tmp_path
