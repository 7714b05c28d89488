"""`site-agent init`: makes a site's home: configuration, policy, ledger, audit chain.

Asks on a terminal for what no flag gives. With --invitation, the site's name, the gateway and whose
keys the policy pins come from there. The home appears whole or not at all, and one that is there
already is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedfactory.cli.arguments import Arguments, count
from fedfactory.cli.completers import completed, machine_names
from fedfactory.cli.forms import add_forms, tell
from fedfactory.contracts.errors import UsageError
from site_agents.cli.confirming import PIN_S
from site_agents.cli.home import VARIABLE
from site_agents.config import AGENT_FILE, POLICY_FILE
from site_agents.second_place import SYSLOG

if TYPE_CHECKING:
    from fedfactory.wire.membership import Invitation
    from site_agents.policy import DataRule

KINDS: Final[Mapping[str, str]] = {".csv": "csv", ".parquet": "parquet", ".npz": "npz"}
FOLDER_KIND: Final = "images"
# Delta is fixed for good with the ledger: well below one in the number of units.
DELTA: Final = 1e-5
DELTA_OF_SIZE: Final = 0.1


def main(words: Sequence[str]) -> int:
    """Make a home; return the exit code."""
    asked = _parser().parse_args(words)
    ask = _prompt if sys.stdin.isatty() else _refuse
    home = asked.home or Path(ask("--home", "folder to make"))
    invitation = _invitation(asked.invitation)
    if invitation is not None:
        _fill_in(asked, invitation)
    site = asked.site or ask("--site", "name of this site (site-agent sites lists them)")
    gateway = asked.gateway or ask("--gateway", "the consortium's gateway, host:port")
    _check_second_place(asked.second_place)
    from fedfactory.tasks.table import load_task
    from site_agents.policy import OperatorPin, policy_text
    from site_agents.policy.pins import day_text
    from site_agents.setup import make_home
    from site_agents.task_values import fixed_data

    tasks = [load_task(task) for task in asked.task]  # one that is not installed is a slip
    options, rules = _data(asked, ask)
    smallest = min((DELTA, *(DELTA_OF_SIZE / rule.public_size for rule in rules.values())))
    until = day_text(time.time() + PIN_S)
    text = policy_text(
        coordinators=dict(_pair(word, "--coordinator NAME=KEY") for word in asked.coordinator),
        operators={
            name: OperatorPin(key=key, until=until, confirmed=None)
            for name, key in (_pair(word, "--operator NAME=KEY") for word in asked.operator)
        },
        data=rules,
        tasks={task.name: fixed_data(task, next(iter(rules), "")) for task in tasks},
        delta=smallest,
    )
    made = make_home(
        home,
        site=site,
        gateway_address=gateway,
        data=options,
        policy_text=text,
        ledger=asked.ledger.absolute() if asked.ledger else None,
        second_place=asked.second_place,
        invitation=invitation,
    )
    return tell(
        asked,
        {"home": str(made.home), "site": site, "gateway": gateway},
        ids=[made.home],
        words=_next_steps(made.home, invitation),
    )


def _invitation(path: Path | None) -> Invitation | None:
    """Return the invitation in a file, if it is a site's."""
    if path is None:
        return None
    from fedfactory.wire.invitations import read_invitation

    invitation = read_invitation(path)
    if invitation.role != "site":
        raise UsageError(
            f"{path} is for the {invitation.role} '{invitation.name}', not for a site:"
            " `fedfactory enrol` takes it"
        )
    return invitation


def _fill_in(asked: argparse.Namespace, invitation: Invitation) -> None:
    """Take from an invitation what no flag gives; a flag that says otherwise is kept or refused."""
    if asked.site not in (None, invitation.name):
        raise UsageError(f"--site {asked.site}: the invitation is for the site '{invitation.name}'")
    asked.site = invitation.name
    asked.gateway = asked.gateway or invitation.gateway
    asked.coordinator = asked.coordinator or [
        f"{invitation.consortium}={invitation.coordinator_key}"
    ]
    asked.operator = asked.operator or [
        f"{name}={key}" for name, key in invitation.operator_keys.items()
    ]


def _data(
    asked: argparse.Namespace, ask: Callable[[str, str], str]
) -> tuple[dict[str, dict[str, Any]], dict[str, DataRule]]:
    """Return options and rule of the data set that the flags name, if they name one."""
    if not asked.data:
        if asked.task or asked.public_size or asked.lineage or asked.unit:
            raise UsageError("--task, --public-size, --lineage and --unit need --data NAME=PATH")
        return {}, {}
    from site_agents.policy import DataRule

    name, path = _pair(asked.data, "--data NAME=PATH")
    question = f"how many units '{name}' has, a number that everyone may know"
    size = asked.public_size or _size(ask("--public-size", question))
    rule = DataRule(lineage=asked.lineage or name, public_size=size, unit=asked.unit or "row")
    source = Path(path).absolute()
    options = data_options(source)
    if not source.exists():
        raise UsageError(
            f"--data: {source} is not there; name a file or folder that this user can read, or"
            f" leave --data out and name it in {AGENT_FILE} and {POLICY_FILE} later"
        )
    return {name: {**options, "unit": asked.unit} if asked.unit else options}, {name: rule}


def _check_second_place(path: Path | None) -> None:
    """Refuse a second place that the agent could not write to: nothing would ever leave."""
    if path in (None, SYSLOG):
        return
    assert path is not None
    if not path.is_absolute():
        raise UsageError(f"--second-place {path}: expected an absolute path, or syslog")
    if not path.parent.is_dir():
        raise UsageError(
            f"--second-place {path}: there is no folder {path.parent}; mount its file system"
        )
    if not path.is_file():
        raise UsageError(
            f"--second-place {path} is not there, or no file; make it once, empty: touch {path}"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise UsageError(f"--second-place {path}: this user may not read and write it")


def data_options(path: Path) -> dict[str, Any]:
    """Return the options of a data source at `path`: its kind by its ending.

    Raises:
        UsageError: neither a folder nor a known ending.
    """
    kind = FOLDER_KIND if path.is_dir() else KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"--data: {path}: expected a folder of images, or a file that ends in"
            f" {', '.join(KINDS)}"
        )
    return {"kind": kind, "path": str(path)}


def _parser() -> Arguments:
    parser = Arguments(
        prog="site-agent init",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--invitation", type=Path, metavar="FILE", help="the consortium's invitation of this site"
    )
    site = parser.add_argument("--site", metavar="NAME", help="this site's name in the catalogue")
    completed(site, machine_names)
    parser.add_argument("--gateway", metavar="HOST:PORT", help="the one address it connects to")
    parser.add_argument(
        "--coordinator",
        metavar="NAME=KEY",
        action="append",
        default=[],
        help="a coordinator that may ask, and its key's fingerprint sha256:...; may be repeated",
    )
    parser.add_argument(
        "--operator",
        metavar="NAME=KEY",
        action="append",
        default=[],
        help="a person whose signature over a run's plan counts, for a year; may be repeated",
    )
    parser.add_argument("--data", metavar="NAME=PATH", help="a data set; more in agent.yaml later")
    parser.add_argument(
        "--public-size", type=count, metavar="N", help="how many units it has, known to everyone"
    )
    parser.add_argument("--lineage", metavar="NAME", help="its population (default: its own name)")
    parser.add_argument(
        "--unit", metavar="COLUMN", help="the column that tells whose a row is (default: row)"
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        default=[],
        help="a task that may use it; may be repeated",
    )
    parser.add_argument(
        "--ledger", type=Path, metavar="DIR", help="a local disk's folder, if DIR is on a network"
    )
    parser.add_argument(
        "--second-place", type=Path, metavar="FILE", help="an empty file elsewhere, or syslog"
    )
    add_forms(parser)
    return parser


def _prompt(flag: str, question: str) -> str:
    print(f"{question}: ", end="", file=sys.stderr, flush=True)
    if answer := sys.stdin.readline().strip():
        return answer
    raise UsageError(f"{flag}: nothing was given; nothing was made")


def _refuse(flag: str, question: str) -> str:
    raise UsageError(f"{flag} is missing ({question}), and there is no terminal to ask on")


def _pair(word: str, expected: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise UsageError(f"'{word}': expected {expected}")
    return name, value


def _size(answer: str) -> int:
    try:
        return count(answer)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--public-size: {error}") from error


def _next_steps(home: Path, invitation: Invitation | None) -> list[str]:
    lines = [f"made {home}", "next:", f"  1. export {VARIABLE}={home}"]
    if invitation is None:
        pins = "     Pin the keys of the coordinator and its operators there."
        enrolling = "  3. site-agent enrol FILE, with the consortium's invitation"
    else:
        pins = f"     It pins {invitation.consortium}'s keys as the invitation names them: compare"
        pins += " with the consortium, by another way than the invitation came, and confirm each"
        pins += " operator's: site-agent policy confirm-operator NAME FINGERPRINT."
        enrolling = "  3. site-agent run enrols with the invitation; or do it now: site-agent enrol"
        enrolling += " FILE"
    return [
        *lines,
        f"  2. Read {home / 'policy.yaml'}: who may ask, for what, on which data, at what privacy.",
        pins,
        enrolling,
        "  4. site-agent doctor",
        "  5. site-agent run, or the systemd unit of docs/site-administrator.md",
    ]
