"""Numbers and rows as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def human_bytes(n: float) -> str:
    """Decimal units, as the Hub shows them: 2.20 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f} B"


def bar(share: float, width: int = 24) -> str:
    """A share of 0..1 as a bar, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows with aligned columns; `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def layer_range(layers: range) -> str:
    """range(0, 8) -> '0-7'."""
    return str(layers.start) if len(layers) == 1 else f"{layers.start}-{layers.stop - 1}"
