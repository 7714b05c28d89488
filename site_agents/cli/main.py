"""The `site-agent` command: its sub-commands and exit codes; dispatch.py runs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from fedfactory.cli.dispatch import Program

COMMANDS: Final[Mapping[str, str]] = {
    "init": "make a site's home: configuration, policy, keys, ledger, audit chain",
    "enrol": "enrol with an invitation: make the site's key, have it certified",
    "doctor": "look over this site and its way to the gateway, and say what to do",
    "run": "run the site's agent until SIGTERM, which lets it finish its orders",
    "tick": "one pass for cron: take the orders there are, work, answer, end",
    "status": "show what the agent does now and did last; also while it is down",
    "data": "check a data source of the site, or generate a table to try a task with",
    "policy": "check the policy file, or explain what would happen to an order",
    "approvals": "list what waits for a person, or show one against its plan",
    "approve": "let one result leave, after 'approvals' showed it",
    "deny": "keep one result here for good",
    "pause": "begin no new work; what is under way ends and leaves",
    "resume": "let the agent work again after pause, drain or kill",
    "drain": "begin no new work, and end the agent when what is under way has left",
    "kill": "stop all work where it is, and let no result leave",
    "ledger": "show what the privacy budget has spent, holds and has left; manage it",
    "audit": "check, show or export the record of what left the site",
    "sites": "list the machines of the catalogue, or every fact of one",
    "probe": "look at this machine and write a patch for its file in the catalogue",
}
EXIT_CODES: Final = """\
exit codes:
  0 ended as asked             1 broke here, or does not fit  2 wrong name, value or file
  5 the coordinator refused    6 coordinator not reachable    130 interrupted"""
NOTES: Final = f"""\
site-agent COMMAND --help tells more. --json prints for programs, -q only ids, files and errors.
Commands that act on a site take --home DIR (default: $FEDFACTORY_HOME, else this folder if it holds
agent.yaml).

{EXIT_CODES}"""
PROGRAM: Final = Program(
    name="site-agent",
    about="A site's side of fedfactory: its agent, and what the site decides and keeps.",
    package="site_agents.cli",
    entry="main",
    commands=COMMANDS,
    notes=NOTES,
)
main = PROGRAM.main

if __name__ == "__main__":
    sys.exit(main())
