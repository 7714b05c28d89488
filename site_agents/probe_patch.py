"""A patch for conf/site/<machine>.yaml that fills what is unknown with what was seen on site.

A fact that the catalogue has already is never changed: where it differs, a person decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

import yaml

from site_agents.catalogue import ON_SITE, Site
from site_agents.probe import Seen

_ENDLESS: Final = 1 << 20


def patch(site: Site, text: str, seen: Mapping[str, Seen], today: str) -> str:
    """Return a unified diff of `text`, the machine's file; empty if nothing unknown was seen.

    `git apply` and `patch -p1` take it in the root of the repository. `today`: ISO 8601.
    """
    before, after = text.splitlines(keepends=True), text.splitlines(keepends=True)
    for key in unknown_seen(site, seen):
        filled, empty = _line(key, seen[key], today), f"{key}: null\n"
        if empty in after:
            after[after.index(empty)] = filled
        else:  # a stub leaves out what is unknown
            after.append(filled)
    name = f"conf/site/{site.machine}.yaml"
    return "".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))


def unknown_seen(site: Site, seen: Mapping[str, Seen]) -> list[str]:
    """Return the facts that the catalogue lacks and that were seen, in the catalogue's order."""
    return [key for key, fact in site.facts.items() if fact.value is None and key in seen]


def differing(site: Site, seen: Mapping[str, Seen]) -> list[str]:
    """Return a line for each fact that was seen otherwise than the catalogue has it."""
    known = {key: fact for key, fact in site.facts.items() if fact.value is not None}
    return [
        f"{key}: the catalogue has {fact.value} ({fact.grade}),"
        f" {seen[key].source} says {seen[key].value}"
        for key, fact in known.items()
        if key in seen and not _agree(fact.value, seen[key].value)
    ]


def _agree(known: object, seen: object) -> bool:
    """Return whether both say the same; 'A100' and 'NVIDIA A100-SXM4-64GB' do."""
    if isinstance(known, str) and isinstance(seen, str):
        return known.casefold() in seen.casefold()
    return known == seen


def _line(key: str, seen: Seen, today: str) -> str:
    fact = {
        "value": dict(seen.value) if isinstance(seen.value, Mapping) else seen.value,
        "grade": ON_SITE,
        "source": seen.source,
        "verified_on": today,
    }
    flow = yaml.safe_dump(fact, default_flow_style=True, sort_keys=False, width=_ENDLESS)
    return f"{key}: {flow}"
