"""The `site-agent` command: finds the sub-command, renders every known error as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final

from fedfactory.cli.main import guarded
from fedfactory.contracts.errors import UnknownNameError

# Each module `site_agents.cli.<command>` has `main(words) -> exit code`.
COMMANDS: Final[Mapping[str, str]] = {
    "init": "make a site's home: configuration, policy, keys, ledger, audit chain",
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
  0 ended as asked   1 something broke here   2 wrong name, value or file   130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(words), program="site-agent")


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise UnknownNameError("command", words[0], COMMANDS)
    command: Callable[[Sequence[str]], int] = import_module(f"site_agents.cli.{words[0]}").main
    return command(words[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: site-agent COMMAND [ARGUMENT ...]",
            "",
            "A site's side of fedfactory: its agent, and what the site decides and keeps.",
            "",
            "commands:",
            *lines,
            "",
            "site-agent COMMAND --help tells more. Commands that act on a site take --home DIR",
            "(default: $FEDFACTORY_HOME, else this folder if it holds agent.yaml).",
            "",
            EXIT_CODES,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
