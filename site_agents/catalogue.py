"""The machines we know of: one YAML file each, facts with their source, unknown kept null.

conf/site/<name>.yaml is a machine; `aliases` are its other names: its AI Factory's, its host's. A
machine with `status: stub` is one whose host is known and little else: it leaves facts out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError

ON_SITE: Final = "on_site"
GRADES: Final = ("official", "press", "third_party", ON_SITE)
HEADS: Final = ("aliases", "site", "host", "country", "docs", "read_on")
# What is asked of every machine. Partitions and QoS: the longest job, in minutes; null: not known.
FACTS: Final = (
    "system",
    "nodes",
    "cpu_architecture",
    "login_cpu_architecture",
    "gpu_model",
    "gpus_total",
    "gpus_per_node",
    "gpu_memory_gb",
    "stack",
    "scheduler",
    "scheduler_version",
    "scheduler_api",
    "gpu_partitions_max_minutes",
    "gpu_qos_max_minutes",
    "gpu_request",
    "cpus_per_gpu",
    "usable_cpus_per_node",
    "containers",
    "modules",
    "compute_egress",
    "login_egress",
    "login_daemon",
    "service_node",
    "access",
    "account",
    "restrictions",
    "sensitive_data",
)
STUB_FACTS: Final = (*FACTS, "expected_live")
MAX_NUMBERED: Final = 999
# libyaml's where PyYAML was built with it: all machines in 13 ms instead of 110.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBERED: Final = re.compile(r"site-[0-9]{2,3}")
_OF_ITS_OWN: Final = (
    "a site that is none of these goes by a number, as site-01, or by a file of its own"
    " (docs/sites.md, 'Add a site')"
)

FactValue = str | int | Mapping[str, int | None] | Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact of a machine. `value` is None while it is unknown; `verified_on` a date on site."""

    value: FactValue
    source: str | None
    grade: str | None
    verified_on: str | None


UNKNOWN: Final = Fact(value=None, source=None, grade=None, verified_on=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One machine of an AI Factory's host, by the day on which its sources were read.

    `site`: the AI Factory. `docs`: where the host documents the machine, None if not known.
    `stub`: the host is known, the machine is not, or is not there yet.
    """

    machine: str
    aliases: tuple[str, ...]
    site: str
    host: str
    country: str
    docs: str | None
    read_on: str
    stub: bool
    facts: Mapping[str, Fact]


@cache
def machines() -> tuple[str, ...]:
    """Return the name of every machine of the catalogue, sorted. Reads no file."""
    found = (entry.name for entry in (files("fedfactory.conf") / "site").iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in found if n.endswith(".yaml")))


@cache
def known_sites() -> Mapping[str, str]:
    """Return every name of the catalogue and the machine it stands for, sorted.

    Raises:
        EnvironmentFailedError: a file is no YAML, or two machines have one name.
    """
    known = {machine: machine for machine in machines()}
    for machine in machines():
        for alias in _aliases(machine, _read(machine)):
            if alias in known:
                where = f"conf/site/{machine}.yaml"
                raise EnvironmentFailedError(f"{where}: alias '{alias}': {known[alias]} has it too")
            known[alias] = machine
    return dict(sorted(known.items()))


def site_names() -> tuple[str, ...]:
    """Return every name of the catalogue, sorted."""
    return tuple(known_sites())


def numbered_sites(count: int) -> tuple[str, ...]:
    """Return site-01, site-02, ...: sites of no catalogue, in canonical order."""
    width = max(2, len(str(count)))
    return tuple(f"site-{number:0{width}d}" for number in range(1, count + 1))


def check_site_name(name: str) -> str:
    """Return the name of a site if it is in the catalogue or numbered.

    Raises:
        UnknownNameError: neither; the message lists the catalogue, and says how to go on.
    """
    if name not in known_sites() and not _NUMBERED.fullmatch(name):
        known = [*known_sites(), "site-NN"]
        near = get_close_matches(name, known, n=1)
        raise UnknownNameError("site", name, known, hint=None if near else _OF_ITS_OWN)
    return name


def load_site(name: str) -> Site:
    """Return the machine of that name or alias.

    Raises:
        UnknownNameError: no such name in the catalogue.
        EnvironmentFailedError: the file lacks a head or the form of a fact.
    """
    if name not in known_sites():
        raise UnknownNameError("site", name, known_sites())
    machine = known_sites()[name]
    return site_of(machine, _read(machine))


def site_text(machine: str) -> str:
    """Return the text of conf/site/<machine>.yaml."""
    return (files("fedfactory.conf") / "site" / f"{machine}.yaml").read_text(encoding="utf-8")


def site_of(machine: str, raw: Mapping[str, Any]) -> Site:
    """Return the machine that the parsed text of its file describes.

    Raises:
        EnvironmentFailedError: it lacks a head or a fact, or a fact has not its form.
    """
    where = f"conf/site/{machine}.yaml"
    if missing := [head for head in HEADS if head not in raw]:
        raise EnvironmentFailedError(f"{where}: lacks {', '.join(missing)}")
    status, stub = raw.get("status"), raw.get("status") == "stub"
    if status is not None and not stub:
        raise EnvironmentFailedError(f"{where}: status: {status}: expected stub, or no status")
    facts = {key: value for key, value in raw.items() if key not in (*HEADS, "status")}
    asked = STUB_FACTS if stub else FACTS
    if wrong := sorted(facts.keys() - {*asked}):
        raise EnvironmentFailedError(f"{where}: {wrong[0]} is no fact; known: {', '.join(asked)}")
    if missing := [key for key in asked if key not in facts and not stub]:
        raise EnvironmentFailedError(f"{where}: lacks {', '.join(missing)}")
    named = {key: _fact(where, key, facts.get(key)) for key in asked}
    heads = {**{head: raw[head] for head in HEADS}, "aliases": _aliases(machine, raw)}
    return Site(machine=machine, stub=stub, facts=named, **heads)


def _fact(where: str, key: str, raw: Any) -> Fact:
    if raw is None:
        return UNKNOWN
    try:
        fact = Fact(**raw)
    except TypeError as error:
        raise EnvironmentFailedError(
            f"{where}: {key}: expected null or {{value, grade, source, verified_on}}"
        ) from error
    if fact.value is None or not fact.source or fact.grade not in GRADES:
        raise EnvironmentFailedError(
            f"{where}: {key}: expected a value, a source and a grade of {', '.join(GRADES)}, or"
            f" null for what is unknown"
        )
    if not _dated(fact):
        raise EnvironmentFailedError(
            f"{where}: {key}: verified_on: {fact.verified_on}: expected null or a quoted date as in"
            f' "2026-11-21"; grade {ON_SITE} needs one'
        )
    return fact


def _dated(fact: Fact) -> bool:
    if fact.verified_on is None:
        return fact.grade != ON_SITE
    try:
        return date.fromisoformat(fact.verified_on).isoformat() == fact.verified_on
    except (TypeError, ValueError):
        return False


def _aliases(machine: str, raw: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = raw.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise EnvironmentFailedError(
            f"conf/site/{machine}.yaml: aliases: {aliases}: expected a list of names, or []"
        )
    return tuple(aliases)


@cache
def _read(machine: str) -> Mapping[str, Any]:
    where = f"conf/site/{machine}.yaml"
    try:
        raw = yaml.load(site_text(machine), _LOADER)  # noqa: S506  # both of them are safe
    except yaml.YAMLError as error:
        raise EnvironmentFailedError(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise EnvironmentFailedError(f"{where}: expected keys and values")
    return raw
