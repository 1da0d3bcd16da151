"""The wheel has everything that a checkout has: the gallery, the family, the same merge from any folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import run_amatax

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, as they lie in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_gallery_is_in_it(installed: Path) -> None:
    in_checkout = {
        p.relative_to(ROOT)
        for p in (ROOT / "merge_recipes").rglob("*")
        if p.suffix in (".yaml", ".safetensors", ".jsonl")
    }
    in_wheel = {
        p.relative_to(installed / "amatax") for p in (installed / "amatax" / "merge_recipes").rglob("*") if p.is_file()
    }
    assert in_checkout
    assert in_checkout <= in_wheel


def test_it_runs_the_same_merge_from_any_folder(installed: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(installed)}
    done = run_amatax("merge", "quickstart", "out", cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert run_amatax("merge", ROOT / "merge_recipes" / "quickstart.yaml", "checkout", cwd=tmp_path).code == 0
    for file in sorted((tmp_path / "out").iterdir()):
        if file.name.startswith("amatax_"):
            continue  # they name the inputs' folders, which differ
        assert file.read_bytes() == (tmp_path / "checkout" / file.name).read_bytes(), file.name


def test_only_amatax_is_in_it(installed: Path) -> None:
    tops = {p.name for p in installed.iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"amatax"}
