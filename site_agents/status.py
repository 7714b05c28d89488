"""HOME/status.json: what the agent does now and did last, for people and `site-agent status`.

The agent writes it whole at each change. It holds nothing that is not also in the agent's log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.orders import WorkKey
from fedfactory.durable_file import write_in_one_piece

STATUS_FILE: Final = "status.json"
KEEP_DONE: Final = 10
Connection = Literal["connected", "connecting", "not enrolled", "refused", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderInHand:
    """An order that is being worked on, or waits for room or a person; `since` in Unix seconds."""

    run_id: str
    round: int
    kind: str
    since: float
    waits_for_approval: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderDone:
    """An order that was answered at `at`: with an update, or with the code of a refusal."""

    run_id: str
    round: int
    kind: str
    at: float
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`connection_since` in Unix seconds; `done` is newest first.

    `connected_at` is when the site was connected last, `certificate_ends` when the certificate that
    the agent uses does; None before there was any.
    """

    connection: Connection
    connection_since: float
    detail: str
    connected_at: float | None
    certificate_ends: float | None
    in_hand: tuple[OrderInHand, ...]
    done: tuple[OrderDone, ...]


def read_status(home: Path) -> Status | None:
    """Return what the agent last wrote; None if it never did, or wrote another version's form."""
    try:
        return from_json(Status, (home / STATUS_FILE).read_bytes())
    except (OSError, ProtocolError):
        return None


class StatusBoard:
    """Keeps the status of a running agent, and its file. Safe to use from several threads."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = home / STATUS_FILE
        self._clock = clock
        self._lock = threading.Lock()
        self._in_hand: dict[WorkKey, OrderInHand] = {}
        before = read_status(home)
        self._status = Status(
            connection="connecting",
            connection_since=clock(),
            detail="",
            connected_at=before.connected_at if before else None,
            certificate_ends=before.certificate_ends if before else None,
            in_hand=(),
            done=before.done if before else (),
        )

    def connection(self, state: Connection, detail: str = "") -> None:
        """Say how the connection stands."""
        with self._lock:
            now, before = self._clock(), self._status
            if "connected" in (state, before.connection):
                self._status = replace(self._status, connected_at=now)
            if (state, detail) != (before.connection, before.detail):
                self._status = replace(
                    self._status, connection=state, connection_since=now, detail=detail
                )
            if self._status != before:
                self._write()

    def certificate(self, ends_at: float) -> None:
        """Say when the certificate in use ends."""
        with self._lock:
            if ends_at != self._status.certificate_ends:
                self._status = replace(self._status, certificate_ends=ends_at)
                self._write()

    def begins(self, work: WorkKey) -> None:
        """An order is in hand."""
        with self._lock:
            before = self._in_hand.get(work)
            self._in_hand[work] = OrderInHand(
                run_id=work.run_id,
                round=work.round,
                kind=work.kind,
                since=before.since if before else self._clock(),
                waits_for_approval=False,
            )
            self._write()

    def waits(self, work: WorkKey) -> None:
        """An order is done and waits for a person."""
        with self._lock:
            if work in self._in_hand:
                self._in_hand[work] = replace(self._in_hand[work], waits_for_approval=True)
                self._write()

    def ends(self, work: WorkKey, outcome: str) -> None:
        """An order was answered."""
        with self._lock:
            self._in_hand.pop(work, None)
            done = OrderDone(
                run_id=work.run_id,
                round=work.round,
                kind=work.kind,
                at=self._clock(),
                outcome=outcome,
            )
            self._status = replace(self._status, done=(done, *self._status.done)[:KEEP_DONE])
            self._write()

    def _write(self) -> None:
        self._status = replace(self._status, in_hand=tuple(self._in_hand.values()))
        try:
            write_in_one_piece(self._path, to_json(self._status))
        except OSError:
            return  # a full disk stops work where it must, at the books; never here
