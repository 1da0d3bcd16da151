"""amatax verify"""

from __future__ import annotations

import json
import sys

import typer


def run(
    folder: str = typer.Argument(help="A folder that `amatax merge` wrote."),
    sample: int = typer.Option(0, help="Compare only so many tensors.", min=0, show_default=False),
    load: bool = typer.Option(False, "--load", help="Also load it with transformers and show one answer."),
    prompt: str = typer.Option("Hello! Who are you?", help="The prompt that --load answers."),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Let --load run the checkpoint's own code."
    ),
    device: str = typer.Option("cpu", help="Where to compute: cpu, cuda, cuda:N, or auto."),
    threads: int = typer.Option(0, help="Workers; 0 is one for each core.", min=0, show_default=False),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Merge again from the recorded recipe and compare bit for bit; say when an input has changed since."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher

    with ProgressWatcher("verifying", quiet=as_json) as watcher:
        verdict = api.verify(folder, sample=sample or None, device=device, threads=threads or None, watcher=watcher)
    answer = None
    if load and verdict.good:
        from amatax.writing.loading import load_and_answer

        answer = load_and_answer(folder, prompt, trust_remote_code=trust_remote_code)
    if as_json:
        report = {
            "good": verdict.good,
            "compared": verdict.compared,
            "different": verdict.different,
            "changed_inputs": verdict.inputs,
            "changed_files": verdict.files,
            "answer": answer,
        }
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif verdict.good:
        print(f"{folder}: {verdict.compared} tensors merged again and equal bit for bit; inputs and files unchanged")
        if answer is not None:
            print(f"loads with transformers: no missing and no unexpected key, finite logits\n\n> {prompt}\n{answer}")
    for role, name in verdict.inputs[:3]:
        print(f"amatax: {role} has changed since the merge: {name!r}", file=sys.stderr)
    for name in verdict.different[:3]:
        print(f"amatax: {folder}: {name!r} is not what the recipe gives", file=sys.stderr)
    for name in verdict.files[:3]:
        print(f"amatax: {folder}: {name} is not the file that was written", file=sys.stderr)
    if not verdict.good:
        counts = f"{len(verdict.different)} tensors differ, {len(verdict.inputs)} inputs and {len(verdict.files)} files changed"
        print(f"  -> {counts}; merge it again with --overwrite if the inputs are right", file=sys.stderr)
        raise typer.Exit(2)
