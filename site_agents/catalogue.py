"""The machines we know of: one YAML file each, facts with their source, unknown kept null.

conf/site/<name>.yaml is a machine; a file that holds only `alias_of` is another name for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError

GRADES: Final = ("official", "press", "third_party")
HEADS: Final = ("machine", "site", "host", "country", "docs")
MAX_NUMBERED: Final = 999
_NUMBERED: Final = re.compile(r"site-[0-9]{2,3}")

FactValue = str | int | Mapping[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact of a machine. `value` is None while it is unknown; `verified_on` a date on site."""

    value: FactValue
    source: str | None
    grade: str | None
    verified_on: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One machine of one AI Factory site. `docs` is where the site documents it."""

    machine: str
    site: str
    host: str
    country: str
    docs: str
    facts: Mapping[str, Fact]


@cache
def site_names() -> tuple[str, ...]:
    """Return every name of the catalogue, sorted. Reads no file."""
    found = (entry.name for entry in (files("fedfactory.conf") / "site").iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in found if n.endswith(".yaml")))


def known_sites() -> dict[str, str]:
    """Return every name of the catalogue and the machine it stands for."""
    return {name: str(_read(name).get("alias_of", name)) for name in site_names()}


def numbered_sites(count: int) -> tuple[str, ...]:
    """Return site-01, site-02, ...: sites of no catalogue, in canonical order."""
    width = max(2, len(str(count)))
    return tuple(f"site-{number:0{width}d}" for number in range(1, count + 1))


def check_site_name(name: str) -> str:
    """Return the name of a site if it is in the catalogue or numbered.

    Raises:
        UnknownNameError: neither; the message lists the catalogue.
    """
    if name not in site_names() and not _NUMBERED.fullmatch(name):
        raise UnknownNameError("site", name, [*site_names(), "site-NN"])
    return name


def load_site(name: str) -> Site:
    """Return the machine of that name or alias.

    Raises:
        UnknownNameError: no such name in the catalogue.
        EnvironmentFailedError: the file lacks a head or the form of a fact.
    """
    if name not in site_names():
        raise UnknownNameError("site", name, site_names())
    raw = _read(name)
    if "alias_of" in raw:
        return load_site(raw["alias_of"])
    if missing := [head for head in HEADS if head not in raw]:
        raise EnvironmentFailedError(f"conf/site/{name}.yaml: lacks {', '.join(missing)}")
    heads = {head: str(raw.pop(head)) for head in HEADS}
    return Site(**heads, facts={key: _fact(name, key, value) for key, value in raw.items()})


def _fact(name: str, key: str, raw: Any) -> Fact:
    where = f"conf/site/{name}.yaml: {key}"
    try:
        fact = Fact(**raw)
    except TypeError as error:
        raise EnvironmentFailedError(
            f"{where}: expected {{value, source, grade, verified_on}}"
        ) from error
    sourced = fact.source is not None and fact.grade in GRADES
    if (fact.value is not None) != sourced:
        raise EnvironmentFailedError(
            f"{where}: a value needs a source and a grade of {', '.join(GRADES)};"
            " what is unknown has neither"
        )
    return fact


def _read(name: str) -> dict[str, Any]:
    text = (files("fedfactory.conf") / "site" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
