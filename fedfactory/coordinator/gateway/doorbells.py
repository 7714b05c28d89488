"""The sites' doorbells: a stream to each that says "there may be a message", or asks a question.

It also carries the revocations of operators, in the order in which they were made.

The latest stream of a site counts. A question waits for its answer in the thread that asks it; only
the site that was asked can answer, and a late answer is dropped.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.questions import Answer, SignedQuery
from fedfactory.wire.rpc import gateway_pb2 as pb

MAX_QUESTIONS_PER_SITE: Final = 8


class Doorbell:
    """One site's open stream. Rings still unheard become one."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = True  # the first ring says that the site is heard
        self._questions: deque[tuple[str, bytes]] = deque()
        self._revocations: deque[bytes] = deque()
        self._closed = False

    def ring(self) -> None:
        """Let the site fetch what waits for it."""
        with self._condition:
            self._rung = True
            self._condition.notify()

    def ask(self, question_id: str, question: bytes) -> None:
        """Put a question to the site."""
        with self._condition:
            self._questions.append((question_id, question))
            self._condition.notify()

    def revoke(self, revocation: bytes) -> None:
        """Tell the site that an operator was revoked."""
        with self._condition:
            self._revocations.append(revocation)
            self._condition.notify()

    def close(self) -> None:
        """End the stream."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def rings(self) -> Iterator[pb.Ring]:
        """Yield what the site is to hear, until the bell is closed."""
        while True:
            with self._condition:
                self._condition.wait_for(self._has_something)
                if self._closed:
                    return
                ring = pb.Ring()
                if self._questions:
                    ring.question_id, ring.question = self._questions.popleft()
                if self._revocations:
                    ring.revocation = self._revocations.popleft()
                self._rung = False
            yield ring

    def _has_something(self) -> bool:
        return bool(self._closed or self._rung or self._questions or self._revocations)


class Doorbells:
    """The open bells, by site. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bells: dict[str, Doorbell] = {}

    def open(self, site: str) -> Doorbell:
        """Return a site's new bell; its older stream ends."""
        bell = Doorbell()
        with self._lock:
            older = self._bells.get(site)
            self._bells[site] = bell
        if older is not None:
            older.close()
        return bell

    def remove(self, site: str, bell: Doorbell) -> bool:
        """A stream has ended; whether it was the site's latest."""
        with self._lock:
            if self._bells.get(site) is not bell:
                return False
            del self._bells[site]
            return True

    def find(self, site: str) -> Doorbell | None:
        """Return a site's bell, None if it has none."""
        with self._lock:
            return self._bells.get(site)

    def sites(self) -> list[str]:
        """Return the sites whose bell is open, sorted."""
        with self._lock:
            return sorted(self._bells)

    def revoke(self, revocation: bytes) -> int:
        """Tell every site with an open bell that an operator was revoked; return how many."""
        bells = self._all()
        for bell in bells:
            bell.revoke(revocation)
        return len(bells)

    def hang_up_all(self) -> None:
        """End all streams."""
        for bell in self._all():
            bell.close()

    def _all(self) -> list[Doorbell]:
        with self._lock:
            return list(self._bells.values())


@dataclass(slots=True)
class _Pending:
    site: str
    came: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None


class Questions:
    """The questions that wait for an answer, by id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}

    def ask(
        self, bell: Doorbell, site: str, question: SignedQuery, timeout_s: float
    ) -> Answer | None:
        """Ask a site at its open bell; None if no readable answer came in time.

        Raises:
            EnvironmentFailedError: too many questions wait for this site already.
        """
        question_id = secrets.token_hex(16)
        pending = _Pending(site)
        with self._lock:
            waiting = sum(other.site == site for other in self._pending.values())
            if waiting >= MAX_QUESTIONS_PER_SITE:
                raise EnvironmentFailedError(f"{waiting} questions wait for {site}: ask later")
            self._pending[question_id] = pending
        try:
            bell.ask(question_id, to_json(question).encode())
            pending.came.wait(timeout_s)
            return pending.answer
        finally:
            with self._lock:
                del self._pending[question_id]

    def answer(self, site: str, question_id: str, text: bytes) -> None:
        """Take a site's answer; one that nobody waits for is dropped.

        Raises:
            ProtocolError: it is not of the agreed form.
        """
        with self._lock:
            pending = self._pending.get(question_id)
        if pending is None or pending.site != site:
            return
        try:
            pending.answer = from_json(Answer, text)
        finally:
            pending.came.set()

    def give_up(self, site: str) -> None:
        """The site has gone: whoever waits for it need not."""
        with self._lock:
            waiting = [pending for pending in self._pending.values() if pending.site == site]
        for pending in waiting:
            pending.came.set()
