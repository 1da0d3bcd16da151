"""The table in the terminal."""

from __future__ import annotations

import pytest

from amatax.commands.results_table import print_results, result_rows
from tests.evaluation.tables import ABILITIES, KL, REWARD, table

ROWS = {
    "sft": [0.2, 0.9, 0.0],
    "rlhf": [0.8, 0.5, 0.4],
    "uniform 0.3": [0.3, 0.8, 0.05],
    "fitted-3 0.3": [0.6, 0.85, 0.04],
}


def test_plain_lines_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(table((REWARD, ABILITIES, KL), ROWS), "fitted-3 0.3")
    assert capsys.readouterr().out.splitlines() == [
        "   point         alpha       reward ↑    abilities ↑           kl ↓",
        "*  sft                  0.200 ± 0.000  0.900 ± 0.000  0.000 ± 0.000",
        "*  rlhf                 0.800 ± 0.000  0.500 ± 0.000  0.400 ± 0.000",
        "   uniform 0.3     0.3  0.300 ± 0.000  0.800 ± 0.000  0.050 ± 0.000",
        ">  fitted-3 0.3    0.3  0.600 ± 0.000  0.850 ± 0.000  0.040 ± 0.000",
    ]


def test_in_a_terminal_names_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_results(table((REWARD, ABILITIES), {"sft": [0.2, 0.9], "rlhf": [0.8, 0.5], "[red]x[/] 1": [0.3, 0.8]}))
    assert "[red]x[/] 1" in capsys.readouterr().out


def test_a_table_without_sft_has_no_front() -> None:
    rows = result_rows(table((REWARD,), {"model": [0.2]}))
    assert rows[1] == ["", "model", "", "0.200 ± 0.000"]
