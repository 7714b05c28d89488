"""Whether a site's home is its agent's alone: what the agent obeys, and the keys that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import UsageError
from fedfactory.wire.enrolling import INVITATION
from site_agents.config import AgentConfig
from site_agents.control import CONTROL_FOLDER
from site_agents.enrolling import IDENTITY
from site_agents.failures import FAILURES
from site_agents.ledger_file import FILE as LEDGER
from site_agents.ledger_file import KEY as LEDGER_KEY
from site_agents.ledger_head import HEAD as LEDGER_HEAD
from site_agents.receipt_file import RECEIPTS
from site_agents.trusted_file import secret_fault, write_fault

_KEY_SUFFIX: Final = ".key"


def check_home(config: AgentConfig) -> None:
    """Check that nobody else can change what the agent works by, or read its keys.

    Raises:
        UsageError: somebody can; says who, where, and what to do.
    """
    if found := next(home_faults(config), None):
        raise UsageError(found)


def home_faults(config: AgentConfig) -> Iterator[str]:
    """Yield a sentence for each file or folder that is not the agent's alone."""
    home = config.home
    folders = [home / name for name in (IDENTITY, "audit", CONTROL_FOLDER)]
    ledger = [config.ledger / name for name in (LEDGER, LEDGER_HEAD)]
    kept = [*ledger, *(home / name for name in (FAILURES, RECEIPTS, "spool"))]
    kept += [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    keys = {path for path in kept if path.suffix == _KEY_SUFFIX}
    keys |= {config.ledger / LEDGER_KEY, home / IDENTITY / INVITATION}
    found = [_fault(path, write_fault) for path in (*folders, *kept)]
    found += [_fault(path, secret_fault) for path in sorted(keys)]
    yield from dict.fromkeys(filter(None, found))


def _fault(path: Path, look: Callable[[Path], str | None]) -> str | None:
    try:
        return look(path)
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
