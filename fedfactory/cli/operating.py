"""What the commands of operators share: whose folder, the way to the coordinator, JSON or words."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedfactory.cli.arguments import Arguments
from fedfactory.contracts.errors import FedfactoryError, UnreachableError

if TYPE_CHECKING:
    from fedfactory.operator.client import OperatorClient
    from fedfactory.wire.operations import RunRow

VARIABLE: Final = "FEDFACTORY_OPERATOR"
DEFAULT_FOLDER: Final = "~/.config/fedfactory"


def operating(command: str, about: str) -> Arguments:
    """Return the parser of an operator's command, with what all of them take."""
    parser = Arguments(prog=f"fedfactory {command}", description=about)
    add_operating(parser)
    return parser


def add_operating(parser: argparse.ArgumentParser) -> None:
    """Add what every operator's command takes."""
    parser.add_argument(
        "--as",
        dest="folder",
        type=Path,
        metavar="DIR",
        help=f"the enrolled folder (default: ${VARIABLE}, else {DEFAULT_FOLDER})",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids, files and errors")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run that a command is about."""
    action = parser.add_argument("run", metavar="RUN", help="its id, the beginning of it, or last")
    action.completer = followed_runs  # type: ignore[attr-defined]  # argcomplete's way


def followed_runs(prefix: str, **_: object) -> list[str]:
    """Return the runs that were followed into this folder, for the shell's Tab: costs no call."""
    return [path.name for path in Path("runs").glob(f"{prefix}*")] + ["last"]


def operator_folder(asked: Path | None) -> Path:
    """Return the folder that a command acts from."""
    return (asked or Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)).expanduser()


@contextmanager
def connected(asked: argparse.Namespace) -> Iterator[OperatorClient]:
    """Open the connection to the coordinator; grpc is loaded here."""
    from fedfactory.identity.operators import load_operator
    from fedfactory.operator.client import OperatorClient

    # A transfer that goes on after a cut logs that; a command tells of what it could not mend.
    logging.getLogger("fedfactory").addHandler(logging.NullHandler())
    folder = operator_folder(asked.folder)
    with OperatorClient(load_operator(folder)) as client:
        _renew(client, folder)
        yield client


def _renew(client: OperatorClient, folder: Path) -> None:
    """Renew the operator's certificate if it is time; the old one still serves this command."""
    from fedfactory.identity.operators import IDENTITY
    from fedfactory.wire.renewal import Renewal

    renewal = Renewal(folder / IDENTITY)
    if renewal.due_in_s() > 0:
        return
    try:
        renewal.renew(client.renew)
    except UnreachableError:
        raise
    except (FedfactoryError, OSError) as error:
        say(f"fedfactory: your certificate ends soon and could not be renewed: {error}")


def meant_run(client: OperatorClient, name: str) -> RunRow:
    """Return the run that `name` means."""
    from fedfactory.operator.naming import find_run

    return find_run(name, client.runs())


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=1, allow_nan=False))


def say(line: str) -> None:
    """Tell a person beside what the command prints: on standard error."""
    print(line, file=sys.stderr, flush=True)


def tell_done(asked: argparse.Namespace, told: str, **about: str) -> int:
    """Print that it was done, as asked; return 0."""
    if asked.json:
        print_json({**about, "told": told})
    elif not asked.quiet:
        print(told)
    return 0
