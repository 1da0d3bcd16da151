"""Rewards of responses: by a function in a file named on the command line, or by a sequence-classification model."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from amatax.checkpoints.checkpoint import Checkpoint
from amatax.checkpoints.opening import open_checkpoint
from amatax.errors import DataError
from amatax.fitting.identity import fingerprint
from amatax.fitting.libraries import import_libraries
from amatax.fitting.records import Record
from amatax.recipes.schema import is_folder

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillOptions
    from amatax.fitting.scoring import RewardModel

Pair = tuple[int, Record, str]  # item, whose prompt, response
AGAIN = "mend it and run the same command again: the responses are kept"
AT_ONCE = 64  # calls of a function between two lines of progress


@dataclass(frozen=True)
class Scorer:
    """A reward.

    Attributes:
        identity: tells whether rewards in a journal are this one's.
        prepare: finds what can be wrong before anything is sampled.
        score: yields rewards by item, as they come; raises DataError for one that is no number.
        notes: filled while scoring.
    """

    identity: str
    prepare: Callable[[], None]
    score: Callable[[Sequence[Pair]], Iterator[dict[int, float]]]
    notes: list[str]


def open_scorer(options: DistillOptions) -> Scorer | None:
    """The reward that the options name, if they name one.

    Raises:
        DataError, CheckpointError, HubError: if it is not there.
    """
    if options.reward:
        return function_scorer(options.reward)
    if not options.reward_model:
        return None
    name = options.reward_model
    checkpoint = open_checkpoint(f"./{name}" if Path(name).is_dir() and not is_folder(name) else name)
    return model_scorer(
        checkpoint,
        batch_size=options.batch_size,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )


def function_scorer(spec: str, *, again: str = AGAIN) -> Scorer:
    """FILE.py:function; `function(prompt, response) -> float`, where the prompt is the last user turn's text.

    The file is run as the user's own program would be: it comes from the command line only, never from a recipe.

    Args:
        spec: names it.
        again: the next step after a reward that is none.

    Raises:
        DataError: if there is no such file or function, the file cannot be run, or the function takes other arguments.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name:
        raise DataError(f"--reward {spec}: not FILE.py:function", "like reward.py:reward")
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}", "check the path")
    function = _load_function(path, name)
    _check_arguments(function, spec)

    def score(pairs: Sequence[Pair]) -> Iterator[dict[int, float]]:
        for i in range(0, len(pairs), AT_ONCE):
            yield {
                item: _call(function, spec, record, response, again)
                for item, record, response in pairs[i : i + AT_ONCE]
            }

    return Scorer(f"{name}@{hashlib.sha256(path.read_bytes()).hexdigest()}", lambda: None, score, [])


def model_scorer(checkpoint: Checkpoint, *, batch_size: int, device: str, trust_remote_code: bool) -> Scorer:
    """A sequence-classification model with one label, asked with its own chat template."""
    notes: list[str] = []
    loaded: list[RewardModel] = []

    def prepare() -> None:
        import_libraries()
        from amatax.fitting.scoring import open_reward_tokenizer

        open_reward_tokenizer(checkpoint, trust_remote_code=trust_remote_code)

    def score(pairs: Sequence[Pair]) -> Iterator[dict[int, float]]:
        import_libraries()
        from amatax.fitting.scoring import load_reward_model, score_batches

        if not loaded:
            loaded.append(load_reward_model(checkpoint, batch_size, device=device, trust_remote_code=trust_remote_code))
        return score_batches(loaded[0], pairs, batch_size=batch_size, notes=notes)

    identity = hashlib.sha256(json.dumps(fingerprint(checkpoint)).encode()).hexdigest()
    return Scorer(identity, prepare, score, notes)


class _AsItIs(SourceFileLoader):
    """Runs a file as it is: Python's compiled copies of an older version pass for it if it has the same second and length."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_function(path: Path, name: str) -> Callable[[str, str], Any]:
    module_name = f"_amatax_reward_{path.stem}"
    loader = _AsItIs(module_name, str(path))
    spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file", "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{path}: cannot be run: {_said(error)}", "`python` on that file shows the traceback"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        here = [n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name]
        hint = f"it has {', '.join(here)}" if here else "it has no functions"
        raise DataError(f"{path}: no function {name!r}", hint)
    return function


def _check_arguments(function: Callable[..., Any], spec: str) -> None:
    """Raises DataError for a function that cannot be called with a prompt and a response."""
    try:
        inspect.signature(function).bind("", "")
    except TypeError as error:
        hint = "a reward is called as function(prompt, response)"
        raise DataError(f"{spec} takes other arguments: {error}", hint) from None
    except ValueError:  # of a builtin nothing is known
        return


def _call(function: Callable[[str, str], Any], spec: str, record: Record, response: str, again: str) -> float:
    try:
        with redirect_stdout(sys.stderr):  # --json has stdout to itself
            value = function(last_user_turn(record), response)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{spec} failed on the response to line {record.line}: {_said(error)}",
            f"{again} (AMATAX_DEBUG=1 shows the traceback)",
        ) from error
    try:
        reward = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise DataError(
            f"{spec} gave {value!r} for the response to line {record.line}, and a reward is a finite number",
            again,
        )
    return reward


def last_user_turn(record: Record) -> str:
    """What a reward function gets as the prompt; the last turn of any kind if no user spoke."""
    turns = record.messages
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), turns[-1]["content"])


def _said(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
