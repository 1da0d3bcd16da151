"""Results on disk: every sample's score, so that anybody can compute every figure again. Same results, same bytes.

`results.jsonl` has a line for what it is, one per measure, one per point, then one per sample of a measure at a point; `results.csv`
has those last ones, without the responses. Both are written aside and take their names when they are whole.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amatax.errors import DataError, NonFiniteError, OutputError
from amatax.evaluation.results import Measure, Measured, Point, Results, Sums, half_of

FORMAT = 1
JSONL, CSV = "results.jsonl", "results.csv"
AGAIN = "measure again, or take the file as it was written"

ValueOf = Callable[[str], Callable[[Sums], NDArray[np.float64]]]  # a measure's kind -> its value of sums


def write_results(results: Results, folder: Path) -> list[Path]:
    """Write results.jsonl and results.csv into the folder.

    Raises:
        NonFiniteError: if a sample adds NaN or infinity.
        OutputError: if the folder cannot be written.
    """
    for point in results.points:
        for name, measured in point.measured.items():
            if not np.isfinite(measured.sums).all():
                sample = measured.samples[int(np.argmin(np.isfinite(measured.sums).all(axis=1)))]
                raise NonFiniteError(f"{name} at {point.name}: sample {sample} has a score that is no finite number")
    lines = b"".join(_line(entry) for entry in _entries(results))
    return [write_whole(folder / JSONL, lines), write_whole(folder / CSV, _table(results).encode(errors="replace"))]


def read_results(folder: Path, value_of: ValueOf) -> Results:
    """What `write_results` wrote.

    Args:
        folder: where results.jsonl is.
        value_of: of a kind of measure, such as `nll`, the function that makes its value of sums.

    Raises:
        DataError: if the file is not there, or not whole.
    """
    path = folder / JSONL
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "`amatax sweep` writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", AGAIN) from None
    measures: dict[str, Measure] = {}
    points: dict[str, dict[str, Any]] = {}
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    end = False
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if number == 1:
                if entry["amatax_results"] != FORMAT:
                    raise DataError(f"{path}: format {entry['amatax_results']}, not {FORMAT}", "update amatax")
            elif "end" in entry:
                end = entry["end"] == number
            elif "sample" in entry:
                rows[entry["point"], entry["measure"]].append(entry)
            elif "ratios" in entry:
                points[entry["point"]] = entry
                rows |= {(entry["point"], name): [] for name in entry["measured"]}
            else:
                name, kind = entry["measure"], entry["kind"]
                measures[name] = Measure(name, kind, entry["higher"], value_of(kind), entry["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a line of results ({type(error).__name__}: {error})", AGAIN
            ) from None
    if not end:
        raise DataError(f"{path}: the file is cut off", AGAIN)
    return Results(measures, tuple(_point(entry, rows) for entry in points.values()))


def write_whole(path: Path, data: bytes) -> Path:
    """A file that is there as a whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"{path}: {error.strerror}", "choose another folder, or make room") from None
    return path


def _entries(results: Results) -> Iterator[dict[str, Any]]:
    count = 1
    yield {"amatax_results": FORMAT}
    for measure in results.measures.values():
        count += 1
        yield {
            "measure": measure.name,
            "kind": measure.kind,
            "higher": measure.higher,
            "settings": dict(measure.settings),
        }
    for point in results.points:
        count += 1
        yield {
            "point": point.name,
            "kind": point.kind,
            "alpha": point.alpha,
            "ratios": dict(point.ratios),
            "measured": {name: m.responses is not None for name, m in point.measured.items()},
        }
    for point in results.points:
        for name, measured in point.measured.items():
            scores = _scores(results.measures[name], measured)
            for i, sample in enumerate(measured.samples):
                count += 1
                entry = {
                    "point": point.name,
                    "measure": name,
                    "sample": sample,
                    "half": half_of(sample),
                    "score": scores[i] if math.isfinite(scores[i]) else None,
                    "sums": measured.sums[i].tolist(),
                }
                if measured.responses is not None:
                    entry["response"] = measured.responses[i]
                yield entry
    yield {"end": count + 1}


def _point(entry: dict[str, Any], rows: dict[tuple[str, str], list[dict[str, Any]]]) -> Point:
    measured = {}
    for name, answered in entry["measured"].items():
        here = rows[entry["point"], name]
        measured[name] = Measured(
            np.array([row["sums"] for row in here], dtype=np.float64),
            tuple(row["sample"] for row in here),
            tuple(row["response"] for row in here) if answered else None,
        )
    return Point(entry["point"], entry["kind"], entry["alpha"], entry["ratios"], measured)


def _scores(measure: Measure, measured: Measured) -> list[float]:
    """The measure of each sample by itself."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return list(np.asarray(measure.value(measured.sums), dtype=np.float64).tolist())


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return json.dumps(entry).encode() + b"\n"


def _table(results: Results) -> str:
    groups = list(dict.fromkeys(name for point in results.points for name in point.ratios))
    widest = max((m.sums.shape[1] for point in results.points for m in point.measured.values()), default=0)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    sums = [f"sum_{i + 1}" for i in range(widest)]
    rows.writerow(["point", "kind", "alpha", *groups, "measure", "sample", "half", "score", *sums])
    for point in results.points:
        alpha = "" if point.alpha is None else repr(float(point.alpha))
        front = [point.name, point.kind, alpha, *(_number(point.ratios.get(group)) for group in groups)]
        for name, measured in point.measured.items():
            scores = _scores(results.measures[name], measured)
            for sample, score, added in zip(measured.samples, scores, measured.sums.tolist(), strict=True):
                shown = repr(score) if math.isfinite(score) else ""
                rest = [*map(repr, added), *[""] * (widest - len(added))]
                rows.writerow([*front, name, sample, half_of(sample), shown, *rest])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))
