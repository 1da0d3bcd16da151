"""docs/results.md: what was run, the verdicts, the differences behind them, and every point."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import numpy as np

from amatax.evaluation.fronts import the_point
from amatax.evaluation.results import Point
from amatax.evaluation.series import digits_of
from amatax.evaluation.statistics import standard_error, value_of
from amatax.fitting.bootstrap import DRAWS
from benchmarks.reproduce.claims import Claim, Row
from benchmarks.reproduce.contrasts import GAIN, TAX, area_of, of_ways
from benchmarks.reproduce.grid import ANSWER, KEPT, PROMPTS, RATIOS, ROOT, SEEDS, UNIFORM
from benchmarks.reproduce.pictures import FRONTS, SHARES
from benchmarks.reproduce.table import Table
from benchmarks.reproduce.verdicts import Contrast, Side

WORDS: dict[Side, str] = {"above": "yes", "below": "the contrary", "open": "indistinguishable"}
MEASURED_BY = ("cli/amatax", "merge_recipes/family")  # what the numbers hang on


def page(table: Table, claims: Sequence[Claim], missing: Sequence[str] = ()) -> str:
    """The whole file.

    Args:
        missing: sweeps that are not finished.
    """
    count = sum(len(claim.rows) for claim in claims)
    return "\n".join(
        [
            *_head(table),
            *_unfinished(table, missing),
            *_verdicts(claims, count),
            f"![Reward against abilities of every way of merging]({FRONTS})",
            "",
            "## The differences behind the verdicts",
            "",
            "Positive is what the claim says. Rows in italics count for no verdict.",
            "",
            *(line for claim in claims for line in _claim(claim)),
            *_areas(table),
            *_by_alpha(table),
            "## Fitted ratios",
            "",
            f"![Ratios by layer, alpha and number of blocks]({SHARES})",
            "",
            *_points(table),
        ]
    )


def _head(table: Table) -> list[str]:
    samples = the_point(table.results, "sft").measured
    seeds = _seeds(table)
    counts = ", ".join(f"{name} {len(one.samples)}" for name, one in samples.items())
    code = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", *MEASURED_BY], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return [
        "# The paper's claims, on the small family",
        "",
        "<!-- Written by `make reproduce` (benchmarks/reproduce); do not edit. -->",
        "",
        "What AMA ([arXiv 2309.06256](https://arxiv.org/abs/2309.06256)) claims of models of 3 and 7 billion parameters, tried on the "
        "[small family](../merge_recipes/family/README.md) of this repository: 1.7 million parameters, nine layers, one training run. A verdict "
        "here says what holds on this family, not that the paper is right or wrong.",
        "",
        f"`make reproduce`; amatax's code and family as of {code or 'no commit'}, {versions}, Python {platform.python_version()}, float32 on a CPU, "
        "one thread a process. An interrupted run continues; a rerun on the same machine writes this file again, to the byte.",
        "",
        f"- **Measured** by `amatax sweep`, greedy answers: {counts} samples. Reward is what RLHF was for; abilities (exact match) are what it costs; their "
        "prompts are held out of training and fits. KL from SFT and NLL are of SFT's kind of answers, which no fit has seen, in nats per token.",
        f"- **Merges** at the ratios {', '.join(f'{r:g}' for r in RATIOS)} (share of RLHF; uniform also {UNIFORM[0]:g} to {UNIFORM[-1]:g}); every "
        "tensor is merged, embeddings and head at the mean.",
        f"- **Fits** see {PROMPTS} responses of RLHF, sampled at temperature 1, up to {ANSWER} tokens; not selected by reward. Tax-aware fits also see {KEPT} "
        f"prompts with SFT's answers (weight 1). Seeds: {seeds}; of fits other responses and another held-out part, of DARE other masks.",
        f"- **An interval** is the paired bootstrap's over the samples ({DRAWS} draws, 95 %), of the mean over the seeds; beside it, from the least to the "
        "greatest seed. **Area** is the hypervolume between SFT's reward and RLHF's abilities: 1 is all of RLHF's reward for no tax.",
        "- **Verdicts**: *confirmed* if the interval lies above 0 and every seed does; *not confirmed* if it lies below and every seed does; else "
        "*indistinguishable*.",
        "",
    ]  # fmt: skip


def _unfinished(table: Table, missing: Sequence[str]) -> list[str]:
    lines = []
    if missing:
        lines = [
            f"**This run is not finished.** Not measured yet: {', '.join(missing)}. `make reproduce` continues it.",
            "",
        ]
    if _seeds(table) < len(SEEDS):
        words = "What is said of fits and of DARE here is of these draws of responses and masks alone"
        lines += [f"**Fewer seeds than {len(SEEDS)}:** {_seeds(table)}. {words}; another draw may turn it.", ""]
    return lines


def _seeds(table: Table) -> int:
    return max(len(runs) for runs in table.ways.values())


def _verdicts(claims: Sequence[Claim], count: int) -> list[str]:
    rows = [[claim.title, claim.source, f"**{claim.verdict}**"] for claim in claims]
    note = f"{count} differences stand behind them; of those in which nothing differs, up to one in twenty is told apart by luck."
    return ["## Verdicts", "", *_table(["claim", "whose", "on this family"], rows), "", note, ""]


def _claim(claim: Claim) -> list[str]:
    rows = [_row(row) for row in claim.rows] + [_row(row, aside=True) for row in claim.beside]
    head = ["", "difference", "95 % over samples", "seeds", ""]
    return [f"### {claim.title}: {claim.verdict}", "", claim.says, "", *_table(head, rows), ""]


def _row(row: Row, aside: bool = False) -> list[str]:
    mark = "*" if aside else ""
    return [f"{mark}{row.what}{mark}", *_cells(row.contrast), WORDS[row.contrast.side]]


def _cells(contrast: Contrast) -> list[str]:
    value, low, high = contrast.interval
    spread = f"{min(contrast.seeds):+.3f} to {max(contrast.seeds):+.3f}" if len(contrast.seeds) > 1 else "–"
    return [f"{value:+.3f}", f"{low:+.3f} to {high:+.3f}", spread]


def _areas(table: Table) -> list[str]:
    rows = []
    for way in table.ways:
        cells = []
        for tax in (TAX, "nll"):
            value, low, high = (found := area_of(table, way, RATIOS, tax)).interval
            spread = f"{min(found.seeds):.3f} to {max(found.seeds):.3f}" if len(found.seeds) > 1 else "–"
            cells += [f"{value:.3f} ({low:.3f} to {high:.3f})", spread]
        rows.append([way, *cells])
    head = ["", "reward and abilities", "seeds", "reward and NLL", "seeds"]
    title = f"## The area under {len(RATIOS)} merges of each way"
    return [title, "", *_table(head, rows), ""]


def _by_alpha(table: Table) -> list[str]:
    rows = []
    for way in (way for way in table.ways if way.startswith(("fitted", "tax-aware"))):
        for ratio in RATIOS:
            cells = []
            for name in (GAIN, TAX):
                value, low, high = (found := of_ways(table, name, way, "uniform", [ratio])).interval
                sign = {"above": "better", "below": "worse", "open": ""}[found.side]
                cells += [
                    f"{value:+.3f} ({low:+.3f} to {high:+.3f})",
                    f"{min(found.seeds):+.3f} to {max(found.seeds):+.3f}",
                    sign,
                ]
            rows.append([f"{way} {ratio:g}", *cells])
    head = ["", f"{GAIN} - uniform", "seeds", "", f"{TAX} - uniform", "seeds", ""]
    return ["## Fits against uniform averaging, alpha by alpha", "", *_table(head, rows), ""]


def _points(table: Table) -> list[str]:
    """Every point: the mean over the seeds, ± the standard error over the samples, and the seeds' range."""
    names = list(table.results.measures)
    rows = [
        [kind, *(_value(table, [the_point(table.results, kind)], name) for name in names)] for kind in ("sft", "rlhf")
    ]
    for way, runs in table.ways.items():
        for ratio in next(iter(runs.values())):
            here = [line[ratio] for line in runs.values()]
            rows.append([f"{way} {ratio:g}", *(_value(table, here, name) for name in names)])
    note = "± one standard error over the samples (the mean over the seeds of each one's own); in brackets the least and the greatest seed."
    return ["## Every merge", "", note, "", *_table(["", *names], rows), ""]


def _value(table: Table, points: Sequence[Point], name: str) -> str:
    measure, digits = table.results.measures[name], digits_of(table.results, name)
    values = [value_of(measure, point.measured[name]) for point in points]
    error = float(np.mean([standard_error(measure, point.measured[name]) for point in points]))
    text = f"{np.mean(values):.{digits}f} ±{error:.{digits}f}"
    return text + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(points) > 1 else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
