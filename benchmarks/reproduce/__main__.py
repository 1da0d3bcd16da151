"""Run what is missing, judge, write docs/results.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from amatax.evaluation.files import JSONL
from benchmarks.reproduce.grid import ROOT, SEEDS, Sweep, sweeps
from benchmarks.reproduce.running import run_all


def main() -> None:
    """The flow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "reproduce", help="what is measured; it is kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results.md and its pictures go")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="how many")
    parser.add_argument("--judge", action="store_true", help="run nothing, judge the sweeps that are finished")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at a time, of one thread each")
    args = parser.parse_args()
    wanted, work = sweeps(SEEDS[: args.seeds]), args.work.resolve()
    if not args.judge:
        run_all(wanted, work, args.jobs)
    done = [sweep for sweep in wanted if (work / sweep.name / JSONL).exists()]
    write(done, [sweep.name for sweep in wanted if sweep not in done], work, args.docs)


def write(done: Sequence[Sweep], missing: Sequence[str], work: Path, docs: Path) -> None:
    """The page and its pictures, from what was measured."""
    from benchmarks.reproduce.claims import all_claims
    from benchmarks.reproduce.page import page
    from benchmarks.reproduce.pictures import draw_fronts, draw_shares
    from benchmarks.reproduce.table import read_table

    table = read_table(work, done)
    claims = all_claims(table)
    for path in (draw_fronts(table, docs), draw_shares(table, docs)):
        print(path)
    (docs / "results.md").write_text(page(table, claims, missing), encoding="utf-8")
    for claim in claims:
        print(f"{claim.verdict:18}  {claim.title}")


if __name__ == "__main__":
    main()
