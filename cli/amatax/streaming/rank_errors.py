"""Errors of several processes: as JSON on their way from one to another, and what they have to say together."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from amatax import errors
from amatax.errors import AmataxError, Fault, FaultsError


def error_to_json(error: BaseException) -> dict[str, Any]:
    """An error so that another process can raise it."""
    where = {"host": socket.gethostname(), "kind": type(error).__name__}
    if isinstance(error, FaultsError):
        return {**where, "faults": [asdict(fault) for fault in error.faults]}
    if isinstance(error, AmataxError):
        return {**where, "message": error.message, "hint": error.hint}
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return {**where, "message": message, "hint": "check the disk and the permissions, then run it again"}
    message = f"a bug in amatax: {type(error).__name__}: {error}"
    return {**where, "message": message, "hint": "run it again with AMATAX_DEBUG=1 and report what it prints"}


def error_from_json(told: Mapping[str, Any], who: str = "") -> AmataxError:
    """That error again, as one of amatax's; `who` stands in front."""
    kind = getattr(errors, told["kind"], None)
    if "faults" in told:
        faults = [
            Fault(**{**fault, "where": ": ".join(filter(None, (who, fault["where"])))}) for fault in told["faults"]
        ]
        return kind(faults) if isinstance(kind, type) and issubclass(kind, FaultsError) else FaultsError(faults)
    if not (isinstance(kind, type) and issubclass(kind, AmataxError)):
        kind = AmataxError
    return kind(f"{who}: {told['message']}" if who else told["message"], told["hint"])


def left_error(told: Mapping[str, Any]) -> AmataxError:
    """Why a rank has gone; it is named, unless what it says names ranks already."""
    says = told["faults"][0]["where"] if told.get("faults") else told.get("message", "")
    named = says.startswith("rank") or "rank" not in told
    return error_from_json(told, "" if named else f"rank {told['rank']} ({told['host']})")


def joint_error(outcomes: Sequence[Mapping[str, Any] | None], *, named: bool) -> AmataxError:
    """One error for what the ranks raised; they are named, unless all have the same to say."""
    groups: dict[str, list[int]] = {}
    for rank, told in enumerate(outcomes):
        if told is not None:
            same = json.dumps({key: value for key, value in told.items() if key != "host"}, sort_keys=True)
            groups.setdefault(same, []).append(rank)
    found = []
    for ranks in groups.values():
        told = outcomes[ranks[0]] or {}
        numbers = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        who = f"rank{'s' if len(ranks) > 1 else ''} {numbers} ({told['host']})"
        found.append(error_from_json(told, who if named and len(ranks) < len(outcomes) else ""))
    if len(found) == 1:
        return found[0]
    parts = [e.faults if isinstance(e, FaultsError) else [Fault(e.message, hint=e.hint)] for e in found]
    return FaultsError([fault for part in parts for fault in part])
