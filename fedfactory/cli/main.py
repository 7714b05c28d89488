"""The `fedfactory` command: its sub-commands and exit codes; dispatch.py runs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from fedfactory.cli.dispatch import Program

COMMANDS: Final[Mapping[str, str]] = {
    "local": "run a whole federation on this machine",
    "consortium": "make a consortium's authority, show it, rotate it",
    "coordinator": "run the coordinator's daemon until SIGTERM",
    "invite": "invite a site or a person: a small file to enrol with, once",
    "enrol": "enrol with an invitation, as an operator or a viewer",
    "whoami": "show your own name, role, key's fingerprint and certificate",
    "sites": "list the members: who is connected, whose certificate ends soon",
    "revoke": "cut a member off at once",
    "run": "submit a run to the coordinator and follow it",
    "runs": "list the coordinator's runs",
    "watch": "follow a run live, or show one that is over",
    "stop": "stop a run; its last model stays",
    "resume": "let a suspended, failed or stopped run go on",
    "explain": "why a site did not contribute, in one sentence with the evidence",
    "logs": "what a site lets out of its record of a run",
    "model": "fetch a run's model",
    "report": "print the results of a run folder again",
    "privacy": "plan which noise a run needs, before it runs",
    "completion": "print what makes bash or zsh complete both programs' commands",
    "version": "print the versions of fedfactory, Flower and torch",
}
EXIT_CODES: Final = """\
exit codes:
  0 done, or the run completed     1 something broke here
  2 wrong name, value or file      3 the run failed, or is suspended
  4 the run was stopped            5 refused by the coordinator or the sites
  6 coordinator not reachable      130 interrupted (a run that is watched goes on)"""
NOTES: Final = f"""\
fedfactory COMMAND --help tells more. --json prints for programs, -q only ids, files and errors.
Commands that talk to a coordinator take --as DIR, the folder that was enrolled
(default: $FEDFACTORY_OPERATOR, else ~/.config/fedfactory).
RUN is a run's id, the beginning of one, or `last`.

{EXIT_CODES}"""
PROGRAM: Final = Program(
    name="fedfactory",
    about="Federated learning across supercomputing sites.",
    package="fedfactory.cli",
    entry="run",
    commands=COMMANDS,
    notes=NOTES,
)
main = PROGRAM.main

if __name__ == "__main__":
    sys.exit(main())
