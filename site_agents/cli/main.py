"""The `site-agent` command: finds the sub-command, renders every known error as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final

from fedfactory.cli.main import guarded
from fedfactory.contracts.errors import UnknownNameError

# Each module has `main(words) -> exit code`; the first line of its docstring is its line of help.
COMMANDS: Final[Mapping[str, str]] = {
    "init": "site_agents.cli.init",
    "doctor": "site_agents.cli.doctor",
    "run": "site_agents.cli.run",
    "tick": "site_agents.cli.tick",
    "status": "site_agents.cli.status",
    "data": "site_agents.cli.data",
    "policy": "site_agents.cli.policy",
    "approvals": "site_agents.cli.approvals",
    "approve": "site_agents.cli.approve",
    "deny": "site_agents.cli.deny",
    "pause": "site_agents.cli.pause",
    "resume": "site_agents.cli.resume",
    "drain": "site_agents.cli.drain",
    "kill": "site_agents.cli.kill",
    "ledger": "site_agents.cli.ledger",
    "audit": "site_agents.cli.audit",
    "sites": "site_agents.cli.sites",
    "probe": "site_agents.cli.probe",
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
    command: Callable[[Sequence[str]], int] = import_module(COMMANDS[words[0]]).main
    return command(words[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_line_of_help(module)}" for name, module in COMMANDS.items()]
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


def _line_of_help(module: str) -> str:
    """Return the first line of a command's docstring, without the name that it begins with."""
    first = (import_module(module).__doc__ or "").strip().partition("\n")[0]
    return first.rpartition("`: ")[2].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
