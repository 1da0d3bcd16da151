"""Where a tensor of a model in memory stands on disk: transformers may name modules otherwise than the files do."""

from __future__ import annotations

from collections.abc import Iterable


class DiskNames:
    """A checkpoint's tensor names, to be found by the names that modules have in memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._by_end: dict[str, list[str]] = {}
        for name in self._names:
            self._by_end.setdefault(_end(name), []).append(name)

    def find(self, name: str) -> list[str]:
        """The disk names that may be meant: the name itself, or those that share the longest end with it.

        Only words before the stack of layers may differ (`model.`, `language_model.`, ...), and not all of them: a vision tower's
        layers are no language model's. Of several that end alike, those with the most words in common before that. One name:
        found. Several: nobody can say which.
        """
        if name in self._names:
            return [name]
        wanted = name.split(".")
        ranked: dict[tuple[int, int], list[str]] = {}
        for candidate in self._by_end.get(_end(name), ()):
            parts = candidate.split(".")
            same = _common_end(wanted, parts)
            mine, theirs = wanted[:-same], parts[:-same]
            shared = len(set(mine) & set(theirs))
            strangers = bool(mine) and bool(theirs) and not shared
            if strangers or any(part.isdigit() for part in (*mine, *theirs)) or _cuts_stack(wanted, mine, theirs):
                continue
            ranked.setdefault((same, shared), []).append(candidate)
        return ranked[max(ranked)] if ranked else []

    def beside(self, name: str) -> list[str]:
        """The last words of the modules that the disk has where this one should be; none if it has no such place."""
        place = name.rpartition(".")[0].rpartition(".")[0]
        ends = [place.partition(".")[2]] if "." in place else []
        for prefix in (place, *ends):
            found = [n for n in self._names if prefix and (n.startswith(f"{prefix}.") or f".{prefix}." in n)]
            if found and any(part.isdigit() for part in prefix.split(".")):
                return sorted({n.rpartition(f"{prefix}.")[2].partition(".")[0] for n in found})
        return []


def _end(name: str) -> str:
    """'model.layers.0.q_proj.weight' -> 'q_proj.weight'."""
    return ".".join(name.rsplit(".", 2)[-2:])


def _common_end(one: list[str], other: list[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _cuts_stack(wanted: list[str], mine: list[str], theirs: list[str]) -> bool:
    """Whether the number of a layer is shared, but not the word before it, so that it may be another stack's."""
    first = next((i for i, part in enumerate(wanted) if part.isdigit()), None)
    return first is not None and bool(mine) and bool(theirs) and len(mine) == first
