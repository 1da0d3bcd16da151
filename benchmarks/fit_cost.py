"""What a gradient of all K ratios costs, beside a plain training step and the straightforward way, on the same batch.

Each way runs in a process of its own, in turn, over several rounds. `plain` is forward and backward of one model through full
fine-tuning; `functional` merges every weight and calls the model on them by torch.func.functional_call; `fit` is amatax.
Memory is the process's peak over what it held before the step, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("plain", "functional", "fit")
SMALL: dict[str, Any] = {  # 54 M parameters
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
}
BLOCKS, ALPHA = 3, 0.4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["F", "M"], help="F: 54 M parameters, M: 1.1 B")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--worker", choices=WAYS, help="one way, in this process")
    args = parser.parse_args()
    work = args.folder.resolve()
    if args.worker:
        print(json.dumps(worker(args.worker, work / args.models[0], args.dtypes[0], args.tokens, args.steps)))
        return
    work.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", f"from benchmarks import fit_cost as f; f.siblings({str(work)!r})"], check=True
    )
    for model in args.models:
        for dtype in args.dtypes:
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(args.rounds):
                for way in WAYS:
                    command = [sys.executable, "-m", "benchmarks.fit_cost", "--worker", way, "--folder", str(work)]
                    command += ["--models", model, "--dtypes", dtype, "--tokens", str(args.tokens)]
                    out = subprocess.run(
                        [*command, "--steps", str(args.steps)], check=True, stdout=subprocess.PIPE, cwd=ROOT
                    )
                    found[way].append(json.loads(out.stdout.splitlines()[-1]))
            report(model, dtype, args.tokens, found)


def siblings(work: str) -> None:
    """The 54 M siblings, and the 1.1 B ones of the merge's benchmark."""
    from benchmarks.siblings import llama_config, llama_shape, write_siblings

    write_siblings(Path(work) / "F", llama_shape(SMALL), 1, SMALL)
    big = llama_config(22)
    write_siblings(Path(work) / "M", llama_shape(big), 3, big)


def report(model: str, dtype: str, tokens: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, and the lines that the project promises."""
    seconds = {way: [s for run in runs for s in run["seconds"]] for way, runs in found.items()}
    wall = {way: statistics.median(times) for way, times in seconds.items()}
    least = {way: min(times) for way, times in seconds.items()}
    peak = {way: max(run["peak"] for run in runs) for way, runs in found.items()}
    fit = found["fit"][0]
    room = fit["largest"] + 1.2 * peak["plain"]
    print(f"\n## {model}, {dtype}, {tokens} tokens, {len(seconds['fit'])} steps of each, medians (best)\n")
    print("| way | s a step | tokens/s | held before the step, MB | peak above it, MB |\n|---|---|---|---|---|")
    for way in WAYS:
        held = found[way][0]["held"]
        print(
            f"| {way} | {wall[way]:.3f} ({least[way]:.3f}) | {tokens / wall[way]:.0f} | {held:.0f} | {peak[way]:.0f} |"
        )
    print("\n| promise | measured |\n|---|---|")
    for other, most in (("plain", 1.15), ("functional", 0.8)):
        print(f"| fit / {other} at most {most} | {wall['fit'] / wall[other]:.3f} ({least['fit'] / least[other]:.3f}) |")
    print(
        f"| peak at most the largest merged tensor ({fit['largest']:.0f} MB) + 1.2 x the plain activations: {room:.0f} MB "
        f"| {peak['fit']:.0f} MB |"
    )
    print(f"| both models, as stored: {fit['models']:.0f} MB; held | {fit['held'] - fit['empty']:.0f} MB |", flush=True)


def worker(way: str, models: Path, dtype: str, tokens: int, steps: int) -> dict[str, Any]:
    """Times of some steps, and memory of one more, in MB."""
    from amatax.fitting.libraries import import_libraries

    import_libraries()
    import torch
    import transformers

    _ = transformers.LlamaForCausalLM  # what its import takes is not the models'
    empty = resident()
    compute = getattr(torch, dtype)
    step, facts = {"plain": plain, "functional": functional, "fit": fit}[way](models, compute, tokens)
    step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for the next step is not held
    held = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step()
    return {"seconds": seconds, "held": held, "empty": empty, "peak": resident("VmHWM") - held, **facts}


def resident(what: str = "VmRSS") -> float:
    """MB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1e3


Step = Callable[[], None]


def plain(models: Path, compute: Any, tokens: int) -> tuple[Step, dict[str, float]]:
    """Forward and backward of one model, a gradient for every weight; the gradients' memory is held between steps."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(models / "rlhf", dtype=compute).eval()
    batch = one_batch(tokens)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        loss(model, batch).backward()

    assert all(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    return step, {}


def functional(models: Path, compute: Any, tokens: int) -> tuple[Step, dict[str, float]]:
    """Every weight merged as a tensor of the graph, then functional_call."""
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    both = [load(models / role, dtype=torch.bfloat16).eval() for role in ("sft", "rlhf")]
    sft, rlhf = ({name: p.detach() for name, p in model.named_parameters()} for model in both)
    layers = both[0].config.num_hidden_layers
    block = dict.fromkeys(sft, -1)  # what lies outside the layers takes the mean
    block |= {n: int(n.split(".")[2]) * BLOCKS // layers for n in sft if n.startswith("model.layers.")}
    ratios = torch.full((BLOCKS,), ALPHA, requires_grad=True)
    batch = one_batch(tokens)
    model = both[0]

    def step() -> None:
        ratios.grad = None
        merged = {}
        for name, i in block.items():
            ratio = ratios.mean() if i < 0 else ratios[i]
            merged[name] = (sft[name].float() + ratio * (rlhf[name].float() - sft[name].float())).to(compute)
        loss(lambda **inputs: torch.func.functional_call(model, merged, kwargs=inputs), batch).backward()

    return step, {}


def fit(models: Path, compute: Any, tokens: int) -> tuple[Step, dict[str, float]]:
    """amatax's own pass."""
    import torch

    from amatax.fitting.likelihood import measure
    from amatax.fitting.merged_model import load_merged_model
    from amatax.fitting.samples import Sample
    from amatax.fitting.variables import choose_variables, tensor_groups
    from amatax.planning.plan import make_plan
    from amatax.recipes.loading import load_recipe

    recipe = {"models": {role: str(models / role) for role in ("sft", "rlhf")}, "merge": {"ratios": [ALPHA] * BLOCKS}}
    plan = make_plan(load_recipe(recipe))
    variables = choose_variables(plan.ratios, plan.model, BLOCKS, groups=False, free_head=False, weigh_by_layers=False)
    groups, rows = tensor_groups(plan, variables)
    merged = load_merged_model(plan, groups, rows, compute=compute)
    merged.hold_mean([float(share) for share in variables.shares])  # as every fit at a given alpha
    with torch.no_grad():
        merged.variables.fill_(ALPHA)
    ids, start = one_batch(tokens)
    samples = [Sample(ids[0].tolist(), start, "")]
    sizes = [entry.shape for entry in plan.tensors.values()]
    elements = [torch.Size(shape).numel() for shape in sizes]
    facts = {"largest": max(elements) * compute.itemsize / 1e6, "models": 2 * 2 * sum(elements) / 1e6}

    def step() -> None:
        measure(merged, samples, gradient=True)

    return step, facts


def one_batch(tokens: int) -> tuple[Any, int]:
    """(1, tokens) ids, and where the response starts."""
    import torch

    return torch.randint(1, 32000, (1, tokens), generator=torch.Generator().manual_seed(0)), tokens // 4


def loss(model: Any, batch: tuple[Any, int]) -> Any:
    """-log p of the response, as the fit has it."""
    ids, start = batch
    logits = model(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].float()
    return -logits.log_softmax(-1).gather(2, ids[:, start:, None]).sum()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT / "cli")
    main()
