"""The licence of a merged model, from those of its inputs: the most restrictive that is known, and what has to be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# by the Hub's identifiers, less restrictive first; licences of one row are not ordered among each other
LEVELS: tuple[tuple[str, ...], ...] = (
    ("cc0-1.0", "unlicense", "wtfpl", "pddl"),
    ("mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "ncsa", "postgresql", "bsl-1.0"),
    ("apache-2.0", "afl-3.0", "artistic-2.0", "ms-pl", "ecl-2.0", "odc-by", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-2.0"),
    ("mpl-2.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2"),
    ("gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "osl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "odbl", "gfdl"),
    ("openrail", "openrail++", "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "creativeml-openrail-m", "bigcode-openrail-m"),
    ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "deepfloyd-if-license", "h-research"),
    ("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "fair-noncommercial-research-license", "apple-amlr", "intel-research"),
    ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


class Licence(NamedTuple):
    """A licence as model cards name it; `name` and `link` tell what `other` is."""

    license: str
    name: str = ""
    link: str = ""

    def front(self) -> dict[str, object]:
        """Its keys in a card's front matter."""
        keys = {"license": self.license, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in keys.items() if value}

    def __str__(self) -> str:
        return f"{self.license} ({self.name})" if self.name else self.license


def derive(licences: Mapping[str, Licence | None]) -> tuple[Licence | None, str]:
    """(the licence to name, what to check; "" if all inputs say the same).

    Args:
        licences: of each input, by role; None where it is not known.
    """
    known = {role: licence for role, licence in licences.items() if licence is not None}
    unknown = [role for role in licences if role not in known]
    told = ", ".join(f"{role}: {known.get(role, 'unknown')}" for role in licences)
    different = set(known.values())
    if not known:
        return None, "the licence of no input is known: name one, and see what the inputs allow"
    if len(different) == 1 and not unknown:
        return next(iter(different)), ""
    ranked = [licence for licence in different if licence.license in LEVEL]
    unranked = sorted(licence for licence in different if licence.license not in LEVEL)
    if unranked:  # terms of their own: nobody but a reader can say which are the stricter
        return unranked[0], f"the inputs have licences that have to be read ({told})"
    top = max(LEVEL[licence.license] for licence in ranked)
    strictest = sorted(licence for licence in ranked if LEVEL[licence.license] == top)
    why = "the most restrictive of the inputs' is named" if len(strictest) == 1 else "the inputs' terms add up"
    return strictest[0], f"{why} ({told})"
