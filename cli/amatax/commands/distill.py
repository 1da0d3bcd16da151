"""amatax distill"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.text import columns

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillResult


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a ready recipe; its RLHF model answers."),
    prompts: str = typer.Option(..., help="JSONL of prompts: `prompt`, or `messages`.", show_default=False),
    output: str = typer.Option(..., "--output", "-o", help="The JSONL file to write.", show_default=False),
    role: str = typer.Option("rlhf", help="Which model of the recipe answers: rlhf, sft or base."),
    n: int = typer.Option(1, "--n", help="Responses for each prompt.", min=1),
    temperature: float = typer.Option(1.0, help="1 samples the model as it is.", min=0.0),
    top_p: float = typer.Option(1.0, help="The share of the probability that is sampled from."),
    max_new_tokens: int = typer.Option(512, help="Where a response is cut off.", min=1),
    seed: int = typer.Option(0, help="Of the sampling and of --draw."),
    raw: bool = typer.Option(False, "--raw", help="Take prompts as they are, without the chat template."),
    reward: str = typer.Option(
        "", help="FILE.py:function that scores (prompt, response); the file is run.", show_default=False
    ),
    reward_model: str = typer.Option(
        "", help="A sequence-classification model that scores: a folder or a Hub id.", show_default=False
    ),
    top: int = typer.Option(0, help="Keep so many with the highest rewards.", min=0, show_default=False),
    draw: int = typer.Option(0, help="Then draw so many of them.", min=0, show_default=False),
    batch_size: int = typer.Option(16, help="Samples at a time.", min=1),
    device: str = typer.Option("auto", help="Where to compute: cpu, cuda, cuda:N, or auto."),
    server: str = typer.Option(
        "", help="The URL of an OpenAI-compatible server that has the model and answers instead.", show_default=False
    ),
    server_model: str = typer.Option("", help="The model's name on the server; its only one.", show_default=False),
    concurrency: int = typer.Option(16, help="Requests to the server at a time.", min=1),
    retries: int = typer.Option(5, help="How often a failed request is tried again.", min=0),
    timeout: float = typer.Option(600.0, help="Seconds to wait for the server.", min=0.1),
    max_bad: float = typer.Option(0.0, help="The share of bad lines that are skipped.", min=0.0, max=1.0),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Let transformers run the checkpoint's own code."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace another output, or other unfinished work."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Sample responses of a recipe's RLHF model: the data that `fit-ratios` fits on. A rerun continues an interrupted one."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher
    from amatax.recipes.gallery import find_recipe

    if quiet or as_json:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with ProgressWatcher("distilling", quiet=quiet or as_json, unit="responses") as watcher:
        result = api.distill(
            find_recipe(recipe),
            prompts,
            output,
            role=role,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            raw=raw,
            batch_size=batch_size,
            device=device,
            server=server or None,
            server_model=server_model or None,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            reward=reward or None,
            reward_model=reward_model or None,
            top=top or None,
            draw=draw or None,
            most_bad=max_bad,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            watcher=watcher,
        )
    if as_json:
        print(json.dumps(result_json(result), indent=2, ensure_ascii=False))
    elif not quiet:
        print("\n".join(result_lines(result)))


def result_lines(result: DistillResult) -> list[str]:
    """The result for people."""
    summary = result.summary
    if result.already:
        lines = [f"{result.output} is finished already: the same run, nothing was sampled"]
    else:
        kept = f", {result.kept} of them by an earlier run" if result.kept else ""
        lines = [f"distilled into {result.output} ({summary.responses} responses{kept}, {result.seconds:.1f} s)"]
    rows = [
        ["prompts", str(summary.prompts)],
        ["responses", str(summary.responses)],
        ["selected", str(summary.selected)],
        ["cut off", f"{summary.truncated} ({summary.truncated / summary.responses:.1%})"],
        ["empty, left out", str(summary.empty)],
        ["duplicates, kept", str(summary.duplicates)],
    ]
    lines += [f"  {line}" for line in columns(rows)]
    spreads = [
        ("tokens", summary.tokens, "g"),
        ("reward", summary.rewards, ".3f"),
        ("reward, selected", summary.selected_rewards, ".3f"),
    ]
    table = [
        [name, *(f"{number:{form}}" for number in (spread.lower, spread.median, spread.upper, spread.max))]
        for name, spread, form in spreads
        if spread is not None
    ]
    means = [f"{spread.mean:{'.1f' if form == 'g' else form}}" for _, spread, form in spreads if spread is not None]
    if table:
        head = ["", "mean", "25 %", "median", "75 %", "max"]
        rows = [head, *([row[0], mean, *row[1:]] for row, mean in zip(table, means, strict=True))]
        lines += [f"  {line}" for line in columns(rows, right=range(1, len(head)))]
    if summary.tokens is None:
        lines.append("  tokens: the server does not count them")
    return lines + [f"note: {note}" for note in result.notes]


def result_json(result: DistillResult) -> dict[str, Any]:
    """The result for scripts."""
    return {
        "output": str(result.output),
        "already_finished": result.already,
        "kept": result.kept,
        "seconds": round(result.seconds, 3),
        **result.summary.as_dict(),
        "notes": result.notes,
    }
