"""Disks of their own, small or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def mounted(at: Path, *options: str) -> Iterator[Path]:
    """A mount of its own, or a skip."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root, to mount")
    at.mkdir(exist_ok=True)
    done = subprocess.run([mount, *options, str(at)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def small_disk(at: Path, size: int) -> Any:
    return mounted(at, "-t", "tmpfs", "-o", f"size={size}", "none")
