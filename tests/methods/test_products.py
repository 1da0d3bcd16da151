"""The sums of slerp and model_stock: the same bits whatever vectors the processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy
from amatax.methods import _loops
random = numpy.random.default_rng(0)
sft, rlhf = random.standard_normal((2, 10_003)).astype(numpy.float32)
for numbers in (_loops.products(sft, rlhf), _loops.change_products(sft - rlhf / 8, sft, rlhf)):
    print([number.hex() for number in numbers])
"""


def test_the_order_of_the_sums_is_not_the_processors(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    found = set()
    for name in ("generic", "host"):
        chosen = {} if name == "host" else {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
        environment = {**os.environ, **chosen, "NUMBA_CACHE_DIR": str(tmp_path / name)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1
