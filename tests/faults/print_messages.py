"""`python tests/faults/print_messages.py`: a markdown table of every fault of the tests and the message given for it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *([str(ROOT / "cli")] if "PYTHONPATH" not in os.environ else [])]


def main() -> None:
    """Build the siblings once, damage a copy for each case, print what `amatax merge` says."""
    from tests.conftest import save_siblings, tiny_llama
    from tests.faults import test_checkpoint_faults, test_output_faults, test_recipe_faults
    from tests.faults.breaking import fresh_copy, merge_here

    parts = {"recipe": test_recipe_faults, "checkpoint": test_checkpoint_faults, "output": test_output_faults}
    with tempfile.TemporaryDirectory() as place:
        family = Path(place) / "family"
        save_siblings(family, tiny_llama(), shard="150KB")
        print("| fault | exit | message |\n|---|---|---|")
        for part, module in parts.items():
            for case in module.CASES:
                folder = Path(place) / "w"
                folder.mkdir()
                os.chdir(fresh_copy(family, folder))
                case.damage(folder)
                answer = merge_here(folder, *case.args)
                said = answer.err.strip().replace(f"{folder.resolve()}/", "").replace("|", "\\|")
                shown = said.replace("\n", "<br>") or "(merged)"
                print(f"| {part}: {case.name} | {answer.code} | {shown[:600]} |".replace("\0", "\\0"))
                os.chdir(place)
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
