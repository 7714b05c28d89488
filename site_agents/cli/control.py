"""What pause, resume, drain and kill share: they work by a file, whatever else is up or down.

To stop, the word comes first and the audit chain after it; to go on, the chain comes first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, tell_done
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.lease import holder_of
from site_agents import control
from site_agents.cli.home import add_home, find_home
from site_agents.cli.recording import record
from site_agents.control import ControlName
from site_agents.person import person

COMMANDS: Final[Mapping[ControlName, tuple[str, str]]] = {
    "paused": ("pause", "paused"),
    "running": ("resume", "resumed"),
    "draining": ("drain", "drained"),
    "killed": ("kill", "killed"),
}


def say(word: ControlName, words: Sequence[str], *, description: str | None) -> int:
    """Tell the agent of a home; return 0 once it is durable."""
    command, event = COMMANDS[word]
    parser = Arguments(prog=f"site-agent {command}", description=description)
    add_home(parser)
    parser.add_argument("--reason", default="", metavar="TEXT", help="kept with who and when")
    add_forms(parser)
    asked = parser.parse_args(words)
    home, by = find_home(asked.home), person()
    before = control.state(home)
    if word == "running":
        record(home, event, actor=by, reason=asked.reason, was=before.name)
        control.clear(home, by=by, reason=asked.reason)
    else:
        control.set(home, word, by=by, reason=asked.reason)
        try:
            record(home, event, actor=by, reason=asked.reason, was=before.name)
        except FedfactoryError as error:
            print(f"{command}: done, but not in the audit chain: {error}", file=sys.stderr)
    effect = (
        "within a second" if holder_of(home, "agent") else "when an agent runs here; none does now"
    )
    told = f"{event} (was {before.name}); it holds {effect}"
    return tell_done(asked, told, control=word, was=before.name)
