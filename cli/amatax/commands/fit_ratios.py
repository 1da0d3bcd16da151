"""amatax fit-ratios"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from amatax.commands.text import bar, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amatax.fitting.job import Fitted
    from amatax.fitting.result import Fit, Part

TINY = 5e-4  # nats: of a difference that is less, four decimals do not say much
WORDS = {
    "better": "better than {} on prompts that were not fitted",
    "worse": "worse than {} on prompts that were not fitted: use that",
    "indistinguishable": "indistinguishable from {} on prompts that were not fitted",
    "too few": "not told: fewer than ten prompts were held out",
    "not tested": "not tested: no part of the data was held out",
}


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a ready recipe (`amatax recipes`)."),
    output: str = typer.Option(..., "--output", "-o", help="The recipe to write.", show_default=False),
    data: str = typer.Option(
        "", help="JSONL of prompts and responses of the RLHF model (`amatax distill`).", show_default=False
    ),
    alpha: list[float] = typer.Option(
        [], help="The mean share of RLHF that is held; several give a recipe each. Default: 0.4.", show_default=False
    ),
    keep: str = typer.Option(
        "", help="JSONL of prompts with SFT's answers that must stay: a tax-aware fit.", show_default=False
    ),
    max_kl: list[float] = typer.Option(
        [], help="With --keep: the most KL(SFT || merged), nats per token; several trace it.", show_default=False
    ),
    keep_weight: float = typer.Option(
        0.0, help="With --keep: or add the KL, times this, to the NLL.", show_default=False
    ),
    blocks: int = typer.Option(0, help="How many blocks; default: the recipe's, or 3.", min=0, show_default=False),
    groups: str = typer.Option("", help="`attention,mlp` gives each of them its own ratios.", show_default=False),
    free_head: bool = typer.Option(False, "--free-head", help="Fit the head's ratio too, outside the mean."),
    weigh_by_layers: bool = typer.Option(False, "--weigh-by-layers", help="Blocks count by layers in the mean."),
    holdout: str = typer.Option(
        "",
        help="The share of the prompts (kept ones, too) that is never fitted, or a JSONL file for --data. Default: 0.2.",
        show_default=False,
    ),
    max_length: int = typer.Option(2048, help="Tokens of a sample; longer ones are cut.", min=2),
    max_bad: float = typer.Option(0.0, help="The share of bad lines that are skipped.", min=0.0, max=1.0),
    raw: bool = typer.Option(False, "--raw", help="Take prompts and responses as they are, without the chat template."),
    preset: str = typer.Option(
        "", help="`paper`: the paper's Eq. 13 and Table 3 instead of the optimum.", show_default=False
    ),
    eps: float = typer.Option(0.1, help="With --preset: of Eq. 13.", min=0.0),
    rate: float = typer.Option(4e-5, help="With --preset: of Adam.", min=0.0),
    regulariser: float = typer.Option(0.0, help="Hold the middle blocks nearer to alpha (the paper's C.5)."),
    seed: int = typer.Option(0, help="Of the held-out part, the first look and the bootstrap."),
    device: str = typer.Option("auto", help="Where to compute: cpu, cuda, cuda:N, or auto."),
    compute: str = typer.Option(
        "", help="float32 or bfloat16; default: float32 on a CPU, the checkpoint's on a GPU.", show_default=False
    ),
    batch_tokens: int = typer.Option(4096, help="Tokens of a batch.", min=1),
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Less memory, a third more time."),
    shard: bool = typer.Option(False, "--shard", help="Under torchrun: spread both models over the processes (FSDP2)."),
    picture: str = typer.Option("", help="Also draw the fit: a PNG file.", show_default=False),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Let transformers run the checkpoint's own code."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the recipe at -o."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Find the blocks' ratios by maximum likelihood on responses of the RLHF model (AMA); a rerun continues."""
    from amatax import api
    from amatax.commands.progress import ProgressWatcher
    from amatax.commands.ranks import one_voice
    from amatax.fitting.libraries import set_threads
    from amatax.recipes.gallery import find_recipe

    if groups not in ("", "attention,mlp"):
        raise typer.BadParameter("there is `attention,mlp`", param_hint="--groups")
    if compute not in ("", "float32", "bfloat16", "float16", "float64"):
        raise typer.BadParameter("there is float32 and bfloat16", param_hint="--compute")
    set_threads()  # several processes import torch before they know one another
    with one_voice() as ranks:
        first = ranks.rank == 0
        file = ranks.each(lambda: find_recipe(recipe))
        with ProgressWatcher("fitting", quiet=quiet or as_json or not first, unit="samples") as watcher:
            result = api.fit_ratios(
                file,
                output,
                data=data or None,
                alpha=alpha,
                keep=keep or None,
                max_kl=max_kl,
                keep_weight=keep_weight or None,
                blocks=blocks or None,
                groups=bool(groups),
                free_head=free_head,
                weigh_by_layers=weigh_by_layers,
                holdout=_share(holdout),
                max_length=max_length,
                most_bad=max_bad,
                raw=raw,
                preset=preset or None,
                eps=eps,
                rate=rate,
                regulariser=regulariser,
                seed=seed,
                device=device,
                compute=compute or None,
                batch_tokens=batch_tokens,
                checkpointing=checkpointing,
                shard=shard,
                picture=picture if picture and first else None,
                trust_remote_code=trust_remote_code,
                overwrite=overwrite,
                watcher=watcher,
            )
    if not first:
        return
    if as_json:
        from amatax.fitting.job import fit_json

        found: dict[str, Any] = {"recipes": [str(path) for path in result.recipes], "already_finished": not result.fits}
        if not result.fits:
            found["records"] = [_record(path) for path in result.recipes]
        print(json.dumps({**found, "fits": [fit_json(f) for f in result.fits], "notes": result.notes}, indent=2))
    elif not quiet:
        for fitted in result.fits:
            print("\n".join(report_lines(fitted)))
        print("\n".join(trace_lines(result.fits)), end="")
        if not result.fits:
            for path in result.recipes:
                print(f"{path} is finished already: the same fit, nothing was done (--overwrite fits again)")
                print("\n".join(recorded_lines(_record(path))))
        for note in result.notes:
            print(f"note: {note}")


def _share(holdout: str) -> float | Path | None:
    try:
        return float(holdout) if holdout else None
    except ValueError:
        return Path(holdout)


def _record(path: Path) -> dict[str, Any]:
    """What a finished recipe says of its fit."""
    from amatax.recipes.loading import load_recipe

    return dict(load_recipe(path).record["fit"])


def recorded_lines(record: dict[str, Any]) -> list[str]:
    """A fit that had been finished before, for people; nothing of what somebody has made of its record since."""
    lines = []
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        against = str(record.get("compared_with", "uniform averaging"))
        for key, measure, where in (("nll", "NLL", ""), ("kl", "KL(SFT || merged)", "kept, ")):
            for part, found in record.get(key, {}).items():
                name = where + part.replace("_", " ")
                numbers = f"{found['fitted']:.4f} nats per token, {found['uniform']:.4f} by {against}"
                lines.append(f"  {name}: {measure} {numbers}")
        lines.append(
            f"  {_verdict(record['verdict'], against, alone='keep' in record and not record.get('compared_with'))}"
        )
    return lines


def report_lines(fitted: Fitted) -> list[str]:
    """A fit for people."""
    from amatax.fitting.job import SAME_DIVERGENCE

    found = fitted.fit
    sure = "" if found.ended_early else ", 95 % interval"
    kept = f", KL(SFT || merged) at most {found.bound:g}" if found.bound is not None else ""
    mean = f"{found.alpha:g}"
    if found.alpha_interval is not None:
        mean += f", {found.alpha_interval.low:.3f} to {found.alpha_interval.high:.3f}"
    lines = [f"fitted at mean {mean}{kept} (share of RLHF{sure}):"]
    lines += [f"  {line}" for line in columns(_ratio_rows(found), right=(1,))]
    for measure, parts in (
        ("NLL", (("fitted part", found.fitted), ("held out", found.held_out))),
        ("KL(SFT || model)", (("kept, fitted part", found.kept), ("kept, held out", found.kept_held_out))),
    ):
        table = [_part_row(name, part) for name, part in parts if part is not None]
        head = [f"{measure}, nats per response token", "sft", "rlhf", "uniform", "fitted", "fitted - uniform (95 %)"]
        lines += ["", *columns([head, *table], right=(1, 2, 3, 4))] if table else []
    against = SAME_DIVERGENCE if found.found_alpha else "uniform"
    lines += ["", _verdict(found.verdict, against, alone=bool(found.tradeoff) and not found.found_alpha)]
    if found.tradeoff:
        unseen = [", held out" if part is not None else "" for part in (found.held_out, found.kept_held_out)]
        rows = [["", "alpha", f"NLL on the RLHF data{unseen[0]}", f"KL(SFT || merged){unseen[1]}"]]
        rows += [[t.name, f"{t.alpha:.4g}", f"{t.nll:.4f}", f"{t.kl:.4f}"] for t in found.tradeoff]
        lines += ["", *columns(rows, right=(1, 2, 3))]
    if found.optima > 1:
        lines.append(f"note: {found.optima} distinct optima were seen; this is the best of them")
    return [*lines, f"recipe: {fitted.recipe}", f"next:   amatax merge {fitted.recipe} OUTPUT"]


def trace_lines(fits: Sequence[Fitted]) -> list[str]:
    """Several tax-aware fits in one table: what each bound buys; "" for others."""
    if len(fits) < 2 or not fits[0].fit.tradeoff:
        return []
    rows = [["", "alpha", "NLL on the RLHF data", "KL(SFT || merged)"]]
    for fitted in fits:
        one = fitted.fit
        asked = f"at most {one.bound:g}" if one.bound is not None else f"alpha {one.alpha:g}"
        for t in one.tradeoff:
            if t.name in ("uniform", "tax-aware"):
                rows.append([f"{asked}, {t.name}", f"{t.alpha:.4g}", f"{t.nll:.4f}", f"{t.kl:.4f}"])
    return ["", "all of them:", *columns(rows, right=(1, 2, 3)), ""]


def _verdict(verdict: str, against: str, *, alone: bool) -> str:
    words, of = WORDS[verdict].format(against), ""
    if alone:  # uniform averaging may change more of what SFT answers
        words, of = words.removesuffix(": use that"), " of the NLL alone"
    return f"verdict{of}: {words}"


def _ratio_rows(found: Fit) -> list[list[str]]:
    """Every unknown, its ratio, and how sure it is, or why nothing says so."""
    moving = [name for name, holder in zip(found.names, found.held_by, strict=True) if not holder]
    in_mean = [name for name in moving if name != "head"]  # a free head is outside it
    rows = []
    for name, value, interval, holder in zip(found.names, found.values, found.intervals, found.held_by, strict=True):
        if interval is not None:
            sure = f"{interval.low:.3f} to {interval.high:.3f}"
        elif holder == "bound":
            sure = "at the bound"
        elif found.ended_early:
            sure = ""
        elif holder == "regulariser":
            sure = "the regulariser holds it at the mean"
        elif in_mean == [name] and found.held_alpha:
            sure = "the others and the mean fix it" if len(found.names) > 1 else "the mean fixes it"
        else:
            sure = "no interval: no clear optimum, or few prompts"
        rows.append([name, f"{value:.4f}", bar(value), sure])
    return rows


def _part_row(name: str, part: Part) -> list[str]:
    from amatax.fitting.bootstrap import FEWEST

    models = (part.sft, part.rlhf, part.uniform, part.fitted)
    numbers = [f"{round(value, 4) + 0.0:.4f}" for value in models]  # no -0.0000
    gain = part.gain
    form = "+.1e" if 0 < max(abs(gain.low), abs(gain.high)) < TINY else "+.4f"
    sure = "too few prompts" if part.prompts < FEWEST else f"{gain.low:{form}} to {gain.high:{form}}"
    return [f"{name} ({part.samples} samples, {part.tokens} tokens)", *numbers, f"{gain.value:{form}} ({sure})"]
