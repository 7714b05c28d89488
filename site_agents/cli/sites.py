"""`site-agent sites`: list the machines of the catalogue, or every fact of one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import completed, machine_names
from fedfactory.cli.forms import add_forms, print_json
from site_agents.catalogue import Fact, FactValue, Site, load_site, machines

STUB: Final = "host known, machine unknown"
HEADINGS: Final = ("NAME", "MACHINE", "GPU", "SCHEDULER", "HOST", "IN", "OTHER NAMES")


def main(words: Sequence[str]) -> int:
    """List the machines as a table, or every fact of them; return 0."""
    parser = Arguments(prog="site-agent sites", description="List the machines of the catalogue.")
    told = "show every fact of one machine"
    name = parser.add_argument("name", nargs="?", metavar="NAME", help=told)
    completed(name, machine_names)
    add_forms(parser)
    asked = parser.parse_args(words)
    if asked.name is not None and not (asked.json or asked.quiet):
        print("\n".join(_one(load_site(asked.name))))
        return 0
    sites = [load_site(name) for name in ([asked.name] if asked.name else machines())]
    if asked.json:
        print_json({site.machine: asdict(site) for site in sites})
    elif asked.quiet:
        for site in sites:
            print(site.machine)
    else:
        print("\n".join(_columns([HEADINGS, *map(_row, sites)])))
    return 0


def _row(site: Site) -> tuple[str, ...]:
    system, gpu, scheduler = (
        _shown(key, site.facts[key].value) for key in ("system", "gpu_model", "scheduler")
    )
    machine = STUB if site.stub else system
    return (site.machine, machine, gpu, scheduler, site.host, site.country, ", ".join(site.aliases))


def _one(site: Site) -> list[str]:
    known = [(key, fact) for key, fact in site.facts.items() if fact.value is not None]
    unknown = [key for key, fact in site.facts.items() if fact.value is None]
    return [
        f"{site.machine}: {site.site}, {site.host}, {site.country}",
        *([STUB] if site.stub else []),
        *([f"other names: {', '.join(site.aliases)}"] if site.aliases else []),
        f"documented at: {site.docs or 'unknown'}",
        f"sources read on: {site.read_on}",
        "",
        *(line for key, fact in known for line in _told(key, fact)),
        *textwrap.wrap(f"unknown: {', '.join(unknown)}", 100, subsequent_indent="  "),
    ]


def _told(key: str, fact: Fact) -> tuple[str, str]:
    seen = f"seen on site {fact.verified_on}" if fact.verified_on else "not seen on site"
    return f"{key}: {_shown(key, fact.value)}", f"    {fact.grade}: {fact.source}; {seen}"


def _shown(key: str, value: FactValue) -> str:
    if value is None:
        return "-"
    if isinstance(value, (str, int)):
        return str(value)
    unit = " min" if key.endswith("_minutes") else ""
    return ", ".join(f"{k} {'?' if v is None else f'{v}{unit}'}" for k, v in value.items())


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
