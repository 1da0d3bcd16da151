"""Processes and the large siblings, once for all tests that kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.breaking import snapshot
from tests.faults.processes import hard_linked, save_large_siblings
from tests.forked import MERGING, Warm, forks


@pytest.fixture(scope="session")
def warm() -> Warm:
    return forks(*MERGING)


@pytest.fixture(scope="session")
def large_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Siblings of 50 MB each, never changed, with a recipe that writes 24 shards."""
    folder = tmp_path_factory.mktemp("large")
    save_large_siblings(folder)
    return folder


@pytest.fixture(scope="session")
def large_merged(large_family: Path, warm: Warm) -> dict[str, bytes]:
    """What an uninterrupted merge of them writes."""
    answer = warm.run(large_family, "merge", "recipe.yaml", "whole")
    assert answer.code == 0, answer.err
    return snapshot(large_family / "whole")


@pytest.fixture
def large(large_family: Path, tmp_path: Path, large_merged: dict[str, bytes]) -> Path:
    """A place to merge the large siblings in; the inputs are links to the real ones: replace them, never write them."""
    return hard_linked(large_family, tmp_path)
