"""What the commands of operators share: whose folder, the way to the coordinator, which run."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import completed, followed_runs
from fedfactory.cli.forms import add_forms, say
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
    add_forms(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run that a command is about."""
    run = parser.add_argument("run", metavar="RUN", help="its id, the beginning of it, or last")
    completed(run, followed_runs)


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
