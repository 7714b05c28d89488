"""`site-agent doctor`: looks over this site and its way to the gateway, and says what to do.

Reads and changes nothing of the site's. Exit code 0: the agent can work; 1: a line says fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, print_json
from site_agents.cli.home import add_home, find_home
from site_agents.doctor.finding import Finding


def main(words: Sequence[str]) -> int:
    """Print a line for each finding; return the exit code."""
    parser = Arguments(prog="site-agent doctor", description=__doc__)
    add_home(parser)
    add_forms(parser)
    asked = parser.parse_args(words)
    home = find_home(asked.home)
    from site_agents.doctor.examination import examine

    found = []
    for finding in examine(home):
        found.append(finding)
        if not asked.json and (finding.level == "fail" or not asked.quiet):
            print("\n".join(_lines(finding)), flush=True)
    if asked.json:
        print_json({"findings": [asdict(finding) for finding in found]})
    return int(any(finding.level == "fail" for finding in found))


def _lines(finding: Finding) -> list[str]:
    lines = [f"{finding.level:<5} {finding.area:<9} {finding.text}"]
    return [*lines, f"{'':<16}do: {finding.todo}"] if finding.todo else lines
