"""Which run somebody means: its id, the beginning of one, or `last`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedfactory.contracts.errors import UnknownNameError, UsageError
from fedfactory.wire.operations import RunRow

LAST: Final = "last"
_FEW: Final = 4


def find_run(name: str, rows: Sequence[RunRow]) -> RunRow:
    """Return the run that `name` means among `rows`, newest first.

    Raises:
        UsageError: none is called so, or several begin so; names them.
    """
    if not rows:
        raise UsageError("the coordinator has no runs yet: `fedfactory run` submits one")
    if name == LAST:
        return rows[0]
    found = [row for row in rows if row.run_id.startswith(name)] if name else []
    exact = [row for row in found if row.run_id == name]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if not found:
        # No guess of what was meant: two runs' ids are alike, and the wrong one may be stopped.
        known = [LAST, *(row.run_id for row in rows[:_FEW])]
        raise UnknownNameError("run", name, known, hint="`fedfactory runs` lists them")
    some = ", ".join(row.run_id for row in found[:_FEW])
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    raise UsageError(f"'{name}' begins {len(found)} runs ({some}{more}): give more of the id")
