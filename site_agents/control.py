"""What the administrator told the agent: HOME/control/state.json, read at each order and polled.

It works without the coordinator and without a running agent. `paused`: no new order is begun;
what is being worked on ends and leaves. `draining`: the same, and the agent ends after it.
`killed`: work stops where it is, stays charged, and nothing leaves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, ProtocolError
from fedfactory.durable_file import write_durably
from site_agents.failures import FAILURES, forget_failures
from site_agents.trusted_file import write_fault

ControlName = Literal["running", "paused", "draining", "killed"]
CONTROL_FOLDER: Final = "control"
STATE_FILE: Final = "state.json"
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """Who said so, when (Unix seconds) and why; "" and 0 where nobody ever said anything."""

    name: ControlName
    by: str
    at: float
    reason: str


def state(home: Path) -> ControlState:
    """Return what holds now.

    A file that does not hold, or that others may write, counts as `killed`: it may have said so.
    """
    path = home / CONTROL_FOLDER / STATE_FILE
    try:
        if fault := write_fault(path):
            return ControlState(name="killed", by="agent", at=time.time(), reason=fault)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
        return from_json(ControlState, raw)
    except FileNotFoundError:
        return ControlState(name="running", by="", at=0.0, reason="")
    except (OSError, ProtocolError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        reason = f"{path} does not hold ({what}); `site-agent resume` writes it anew"
        return ControlState(name="killed", by="agent", at=time.time(), reason=reason)


def set(home: Path, name: ControlName, *, by: str, reason: str) -> ControlState:  # noqa: A001 - read as control.set
    """Say what holds from now on; durable when it returns.

    Raises:
        EnvironmentFailedError: it cannot be written; what held before still holds.
    """
    path = home / CONTROL_FOLDER / STATE_FILE
    said = ControlState(name=name, by=by, at=time.time(), reason=reason)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, to_json(said))
    except OSError as error:
        raise _unwritable(path, error) from error
    return said


def clear(home: Path, *, by: str, reason: str) -> ControlState:
    """Let the agent work again, whatever held, and forget work that failed.

    Raises:
        EnvironmentFailedError: like `set`.
    """
    try:
        forget_failures(home)
    except OSError as error:
        raise _unwritable(home / FAILURES, error) from error
    return set(home, "running", by=by, reason=reason)


def _unwritable(path: Path, error: OSError) -> EnvironmentFailedError:
    return EnvironmentFailedError(
        f"{path} cannot be written ({error.strerror}); to stop the agent at once, end its process"
    )
