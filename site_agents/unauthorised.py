"""Messages that nobody the policy pins has signed: counted, not recorded one by one.

Anybody who gets a message through could otherwise grow the audit chain, the second place and the
log at will. A period begins with the first such message, which the log shows; at its end, and when
the books are closed, one entry in the audit chain says how many there were, of what kind, and when.
A crash loses the count of the period under way.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from fedfactory.contracts.errors import FedfactoryError
from site_agents.audit.chain import now
from site_agents.audit.entries import unauthorised

log = logging.getLogger("site_agents.unauthorised")

PERIOD_S: Final = 600.0
# Refusals by which a message is believed by nobody: without a policy no key is pinned.
CODES: Final = frozenset({"not_authorised", "no_policy"})
# "message" has the form of none of the others.
Kind = Literal["order", "ending", "question", "message"]


class Unauthorised:
    """Counts for one site. Safe to use from several threads.

    `record` writes an entry into the audit chain; what it raises is logged, and the count kept.
    """

    def __init__(
        self, record: Callable[[Mapping[str, Any]], object], *, period_s: float = PERIOD_S
    ) -> None:
        self._record = record
        self._period_s = period_s
        self._lock = threading.Lock()
        self._counts: Counter[Kind] = Counter()
        self._first = self._last = ""
        self._finding = ""
        self._timer: threading.Timer | None = None

    def note(self, kind: Kind, finding: str) -> bool:
        """Count a message; return whether it is the first of its period. `finding` says why."""
        with self._lock:
            is_first = not self._counts
            self._counts[kind] += 1
            self._last = now()
            if is_first:
                self._first, self._finding = self._last, finding
            if self._timer is None:
                self._timer = threading.Timer(self._period_s, self._end_period)
                self._timer.daemon = True
                self._timer.start()
        if is_first:
            log.warning(
                "not authorised (%s): %s; more of them are counted, and not shown", kind, finding
            )
        return is_first

    def close(self) -> None:
        """Record what was counted; the books are closed after this."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._end_period()

    def _end_period(self) -> None:
        with self._lock:
            self._timer = None
            if not self._counts:
                return
            counts: dict[str, int] = dict(sorted(self._counts.items()))
            entry = unauthorised(counts, first=self._first, last=self._last, finding=self._finding)
            try:
                self._record(entry)
            except FedfactoryError as error:
                log.error("unauthorised messages could not be recorded: %s", error)  # noqa: TRY400
                return
            self._counts.clear()
        told = ", ".join(f"{kind} {number}" for kind, number in counts.items())
        log.warning("not authorised in the last period, messages by kind: %s", told)
