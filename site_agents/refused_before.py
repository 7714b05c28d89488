"""What this site knows of an order that it refused: when it came, and why it was refused.

The agent keeps refused orders in HOME/refused, each file with the time at which its order came; the
audit chain has the code and the finding.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.plans import SignedOrder
from site_agents.audit.line import Line
from site_agents.audit.reading import read

REFUSED: Final = "refused"  # the folder in a site's home
_EVENT: Final = b'"refused"'


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedBefore:
    """A refusal of the past. `came_at` is in Unix seconds.

    `code` and `finding` are empty where the audit chain has no entry: refusals to senders whom the
    policy does not pin are only counted.
    """

    came_at: float
    code: str = ""
    finding: str = ""


def refused_before(home: Path, path: Path, delivery: SignedOrder) -> RefusedBefore | None:
    """Return the refusal of the delivery in the file `path`, None if the site knows of none."""
    kept_at = _kept_at(home, path)
    entry = _entry(home, delivery)
    if entry is None:
        return None if kept_at is None else RefusedBefore(came_at=kept_at)
    written_at, fields = entry
    # Work may have taken hours before it was refused, and somebody may have touched the file.
    came_at = written_at if kept_at is None else min(kept_at, written_at)
    code = fields["code"]
    finding = fields["finding"].removeprefix(f"{code}: ")
    return RefusedBefore(came_at=came_at, code=code, finding=finding)


def _kept_at(home: Path, path: Path) -> float | None:
    with suppress(OSError):
        if path.resolve().parent == (home / REFUSED).resolve():
            return path.stat().st_mtime
    return None


def _entry(home: Path, delivery: SignedOrder) -> tuple[float, dict[str, Any]] | None:
    """Return the time and the fields of the newest entry for this very delivery."""
    key = delivery.envelope.order.key()
    wanted = (key.coordinator, key.run_id, key.order_digest, delivery.envelope.number)
    found: list[Line] = []

    def look(line: Line) -> None:
        if _EVENT not in line.entry:
            return
        fields = line.fields()
        said = tuple(fields.get(name) for name in ("coordinator", "run", "order", "delivery"))
        if fields.get("event") == "refused" and said == wanted:
            found[:] = [line]

    with suppress(IntegrityError):  # the gate of the site's records says what is wrong with it
        read(home / "audit", look)
    if not found:
        return None
    return datetime.fromisoformat(found[0].at).timestamp(), found[0].fields()
