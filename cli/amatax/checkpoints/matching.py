"""Where a tensor of a model in memory stands on disk: transformers may name modules otherwise than the files do."""

from __future__ import annotations

from collections.abc import Iterable

WRAPPERS = frozenset({"model", "transformer", "language_model", "base_model", "text_model", "backbone"})


class DiskNames:
    """A checkpoint's tensor names, to be found by the names that modules have in memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._by_end: dict[str, list[str]] = {}
        for name in self._names:
            self._by_end.setdefault(_end(name), []).append(name)

    def find(self, name: str) -> list[str]:
        """The disk names that may be meant: the name itself, or those that share the longest end with it.

        Only wrappers (`model.`, `language_model.`, ...) before the stack of layers may differ, and one name must have all those
        of the other; every other word (an encoder's, a decoder's, a vision tower's) must stand in both. Of several that end
        alike, those with the most words in common before that. One name: found. Several: nobody can say which.
        """
        if name in self._names:
            return [name]
        wanted = name.split(".")
        ranked: dict[tuple[int, int], list[str]] = {}
        for candidate in self._by_end.get(_end(name), ()):
            parts = candidate.split(".")
            same = _common_end(wanted, parts)
            mine, theirs = wanted[:-same], parts[:-same]
            if any(part.isdigit() for part in (*mine, *theirs)) or not _differ_in_wrappers(mine, theirs):
                continue
            shared = len(set(mine) & set(theirs))
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


def _differ_in_wrappers(mine: list[str], theirs: list[str]) -> bool:
    """Whether wrappers are all that one beginning of a name has and the other has not."""
    nested = set(mine) <= set(theirs) or set(theirs) <= set(mine)
    return nested and _unwrapped(mine) == _unwrapped(theirs)


def _unwrapped(words: list[str]) -> list[str]:
    return [word for word in words if word not in WRAPPERS]
