"""The machines we know of: one YAML file each, facts with their source, unknown kept null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import yaml

from fedfactory.contracts.errors import ProtocolError, UnknownNameError

GRADES: Final = ("official", "press", "third_party")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact of a machine. `value` is None while it is unknown; `verified_on` a date on site."""

    value: str | int | None
    source: str | None
    grade: str | None
    verified_on: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of one AI Factory site."""

    machine: str
    site: str
    host: str
    country: str
    facts: Mapping[str, Fact]


def known_sites() -> dict[str, str]:
    """Return every name of the catalogue and the machine it stands for."""
    names = {}
    for entry in (files("fedfactory.conf") / "site").iterdir():
        if entry.name.endswith(".yaml"):
            name = entry.name.removesuffix(".yaml")
            names[name] = str(_read(name).get("alias_of", name))
    return dict(sorted(names.items()))


def load_site(name: str) -> Machine:
    """Return the machine of that name or alias.

    Raises:
        UnknownNameError: no such name in the catalogue.
        ProtocolError: the file lacks a fact's form, or a value stands without a source.
    """
    names = known_sites()
    if name not in names:
        raise UnknownNameError("site", name, names)
    raw = _read(names[name])
    heads = {key: str(raw.pop(key)) for key in ("machine", "site", "host", "country")}
    return Machine(**heads, facts={key: _fact(key, value) for key, value in raw.items()})


def _fact(key: str, raw: Any) -> Fact:
    try:
        fact = Fact(**raw)
    except TypeError as error:
        raise ProtocolError(f"{key}: expected value, source, grade, verified_on") from error
    if fact.value is not None and (fact.source is None or fact.grade not in GRADES):
        raise ProtocolError(f"{key}: a value needs a source and a grade of {', '.join(GRADES)}")
    return fact


def _read(name: str) -> dict[str, Any]:
    text = (files("fedfactory.conf") / "site" / f"{name}.yaml").read_text()
    return dict(yaml.safe_load(text))
