"""The newest receipt of each coordinator: HOME/receipts.json, apart from the books it is about.

The ledger holds that a coordinator sends receipts (ReceiptSeen); what the newest says lies here, so
that a ledger or an audit chain put back from an old copy is found out without anybody's help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, ProtocolError
from fedfactory.contracts.plans import Anchor
from fedfactory.durable_file import write_durably
from site_agents.trusted_file import write_fault

RECEIPTS: Final = "receipts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipts:
    newest: Mapping[str, Anchor]


class ReceiptFile:
    """The file of one home; nothing is remembered here. Not for several threads at once."""

    def __init__(self, home: Path) -> None:
        self._path = home / RECEIPTS

    def newest(self) -> Mapping[str, Anchor]:
        """Return the newest receipt of each coordinator, by its name.

        Raises:
            IntegrityError: the file is damaged, or others may write it.
            EnvironmentFailedError: it cannot be read.
        """
        try:
            if fault := write_fault(self._path):
                raise IntegrityError(f"{self._path} is not this site's alone: {fault}")
            return from_json(_Receipts, self._path.read_bytes()).newest
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise EnvironmentFailedError(
                f"{self._path} cannot be read: {error.strerror}; let the agent's user read it"
            ) from error
        except ProtocolError as error:
            raise IntegrityError(f"{self._path} was altered", diagnostic=str(error)) from error

    def keep(self, coordinator: str, receipt: Anchor) -> None:
        """Keep a receipt that the books agree with, durably, unless there is a newer one.

        Raises:
            IntegrityError, EnvironmentFailedError: as `newest`; or it cannot be written.
        """
        known = self.newest()
        before = known.get(coordinator)
        if before is not None and (
            receipt.ledger_sequence <= before.ledger_sequence
            and receipt.audit_length <= before.audit_length
        ):
            return
        try:
            write_durably(self._path, to_json(_Receipts(newest={**known, coordinator: receipt})))
        except OSError as error:
            raise EnvironmentFailedError(
                f"{self._path} cannot be written: {error.strerror}; make room, or let the agent's"
                " user write there"
            ) from error
