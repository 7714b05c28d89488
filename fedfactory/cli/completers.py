"""What the shell's Tab offers for runs, sites and machines: from files alone, without a call."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

LAST: Final = "last"
RUNS: Final = Path("runs")  # where runs are followed into, in this folder
EVENTS: Final = "events.jsonl"


def completed(action: argparse.Action, by: Callable[..., Sequence[str]]) -> None:
    """Have the words of an argument completed, in argcomplete's way."""
    action.completer = by  # type: ignore[attr-defined]


def followed_runs(prefix: str, **_: object) -> list[str]:
    """Return the runs that were followed into this folder."""
    return [path.name for path in RUNS.glob(f"{prefix}*")] + [LAST]


def known_sites(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the sites of the run named before, else of all runs here, else the catalogue's."""
    named = getattr(parsed_args, "run", None) or ""
    folders = sorted(RUNS.glob("*"))
    if named == LAST:
        meant = folders[-1:]
    else:
        meant = [folder for folder in folders if named and folder.name.startswith(named)]
    for among in (meant, folders):
        if found := {site for folder in among for site in _sites_of(folder)}:
            return [site for site in found if site.startswith(prefix)]
    return machine_names(prefix)


def machine_names(prefix: str, **_: object) -> list[str]:
    """Return the machines of the catalogue."""
    from site_agents.catalogue import machines

    return [name for name in machines() if name.startswith(prefix)]


def _sites_of(folder: Path) -> list[str]:
    """Return the sites of a followed run, as its first event says; none if it has not begun."""
    try:
        with (folder / EVENTS).open(encoding="utf-8") as file:
            sites: list[str] = json.loads(file.readline())["plan"]["signed"]["terms"]["sites"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sites
