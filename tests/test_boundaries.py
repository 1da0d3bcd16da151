"""The laws of the house that can be read off the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[1] / "cli" / "amatax"
STAGES = ["recipes", "checkpoints", "planning", "streaming", "writing", "publishing"]
EVERYWHERE = {"errors", "methods"}
FITTING = EVERYWHERE | {
    "recipes",
    "checkpoints",
    "planning",
    "streaming",
    "fitting",
}  # Recipe -> Recipe: it writes no model
EVALUATION = FITTING | {"evaluation"}  # after fitting: what both need is fitting's


def imported_stages(path: Path) -> set[str]:
    """Top-level parts of amatax that a module imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("amatax.")}
    return parts


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_from_those_before_it(stage: str) -> None:
    allowed = EVERYWHERE | set(STAGES[: STAGES.index(stage) + 1])
    for path in (PACKAGE / stage).rglob("*.py"):
        assert imported_stages(path) <= allowed, path


def test_fitting_writes_no_model() -> None:
    for path in (PACKAGE / "fitting").rglob("*.py"):
        assert imported_stages(path) <= FITTING, path


def test_evaluation_comes_after_fitting_and_writes_no_model() -> None:
    for path in (PACKAGE / "evaluation").rglob("*.py"):
        assert imported_stages(path) <= EVALUATION, path


def test_only_the_api_sees_every_stage() -> None:
    for path in (PACKAGE / "methods").rglob("*.py"):
        assert imported_stages(path) <= {"methods"}, path
    seen = [imported_stages(path) for path in (PACKAGE / "api").rglob("*.py")]
    assert set(STAGES) <= set().union(*seen)


def test_every_folder_is_known() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == {*STAGES, "fitting", "evaluation", "methods", "commands", "api"}


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], {"torch", "transformers", "numpy", "pydantic", "huggingface_hub"}),
        (["merge", "--help"], {"torch", "transformers"}),
        (["distill", "--help"], {"torch", "transformers"}),
        (["evaluate", "--help"], {"torch", "transformers", "numpy"}),
        (["sweep", "--help"], {"torch", "transformers", "numpy"}),
        (["check", "RECIPE"], {"torch", "transformers", "huggingface_hub"}),
        (["merge", "RECIPE", "out", "--dry-run"], {"torch", "transformers", "huggingface_hub"}),
        (["inspect", "sft"], {"torch", "transformers"}),
        (["merge", "RECIPE", "out"], {"transformers"}),
    ],
)
def test_heavy_imports_live_where_they_are_needed(siblings: Path, arguments: list[str], forbidden: set[str]) -> None:
    arguments = [str(siblings / "recipe.yaml") if a == "RECIPE" else a for a in arguments]
    assert heavy_imports(forbidden, arguments, siblings) == []


def test_a_finished_folder_is_recognised_without_torch(siblings: Path) -> None:
    arguments = ["merge", "recipe.yaml", "out"]
    assert heavy_imports({"torch"}, arguments, siblings) == ["torch"]
    assert heavy_imports({"torch"}, arguments, siblings) == []


def heavy_imports(names: set[str], arguments: list[str], cwd: Path) -> list[str]:
    """Which of `names` are imported by the end of a command, in a process of its own."""
    code = (
        "import sys\nfrom amatax.commands import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"print('heavy:', *sorted({names!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("heavy:"), done.stdout + done.stderr
    return last.split()[1:]


def test_importing_amatax_imports_nothing_heavy() -> None:
    code = "import amatax, sys; print(sorted({'torch', 'pydantic', 'yaml'} & set(sys.modules))); amatax.load_recipe"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_a_merge_leaves_out_of_torch_is_imported_when_asked_for(siblings: Path) -> None:
    name = "torch._meta_registrations"
    code = (
        "import sys\nsys.argv = ['amatax', 'merge', 'recipe.yaml', 'out', '--json']\n"
        "from amatax.commands import app\n"
        "try:\n    app()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"import torch\nstand_in = sys.modules[{name!r}]\n"
        "assert not any(m.startswith('torch._decomp.') for m in sys.modules), 'the import was not put off'\n"
        "assert 'numpy' not in sys.modules\nimport numpy\n"
        "print(torch._meta_registrations.meta_embedding_bag)\n"
        f"assert sys.modules[{name!r}] is not stand_in is not torch._meta_registrations\n"
        "print(torch.empty(4, 4, device='meta').diagonal_scatter(torch.empty(4, device='meta')).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=siblings)
    assert done.stdout.splitlines()[-2:][0].startswith("<function meta_embedding_bag"), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "torch.Size([4, 4])"


def test_checkpoints_of_torch_save_are_merged_by_a_process_of_their_own(siblings: Path) -> None:
    """Reading them needs parts of torch that a merge otherwise leaves out."""
    from safetensors.torch import load_file

    for role in ("sft", "rlhf"):
        files = list((siblings / role).glob("*.safetensors*"))
        tensors = {name: t for file in files if file.suffix == ".safetensors" for name, t in load_file(file).items()}
        torch.save(tensors, siblings / role / "pytorch_model.bin")
        for file in files:
            file.unlink()
    command = [sys.executable, "-m", "amatax", "merge", "recipe.yaml", "out", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=siblings)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
