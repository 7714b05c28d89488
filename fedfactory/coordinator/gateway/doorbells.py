"""The sites' doorbells: a stream to each that says "there may be a message", or asks a question.

It also carries the revocations of operators, in the order in which they were made.

The latest stream of a site counts. When which one rings is pacing.py's matter. A question waits
for its answer in the thread that asks it; only the site that was asked can answer, and a late
answer is dropped.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.questions import Answer, SignedQuestion
from fedfactory.coordinator.gateway.pacing import Pacing
from fedfactory.wire.rpc import gateway_pb2 as pb

MAX_QUESTIONS_PER_SITE: Final = 8


class Doorbell:
    """One site's open stream. Rings still unheard become one."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = True  # the first ring says that the site is heard
        self._messages: int | None = None  # since the last ring; None: nobody knows
        self._questions: deque[tuple[str, bytes]] = deque()
        self._revocations: deque[bytes] = deque()
        self._closed = False

    def ring(self, messages: int) -> None:
        """Let the site pull so many messages more."""
        with self._condition:
            self._rung = True
            if self._messages is not None:
                self._messages += messages
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
                ring = pb.Ring(messages=self._messages or 0)
                if self._questions:
                    ring.question_id, ring.question = self._questions.popleft()
                if self._revocations:
                    ring.revocation = self._revocations.popleft()
                self._rung, self._messages = False, 0
            yield ring

    def _has_something(self) -> bool:
        return bool(self._closed or self._rung or self._questions or self._revocations)


class Doorbells:
    """The open bells, by site. Usable from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bells: dict[str, Doorbell] = {}
        self._pacing = Pacing()
        self._messages: Counter[str] = Counter()  # that a site was not rung for yet
        self._idle = False  # the thread sleeps until it is told
        self._stopped = False
        self._thread = threading.Thread(target=self._pace, name="gateway-rings", daemon=True)

    def start(self) -> None:
        """Begin to ring."""
        self._thread.start()

    def stop(self) -> None:
        """End all streams and ring no more."""
        self.hang_up_all()
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def open(self, site: str) -> Doorbell:
        """Return a site's new bell; its older stream ends."""
        bell = Doorbell()
        with self._changed:
            older = self._bells.get(site)
            self._bells[site] = bell
            self._forget(site)  # it looks by itself when it is heard
        if older is not None:
            older.close()
        return bell

    def remove(self, site: str, bell: Doorbell) -> bool:
        """A stream has ended; whether it was the site's latest."""
        with self._changed:
            if self._bells.get(site) is not bell:
                return False
            del self._bells[site]
            self._forget(site)
            return True

    def find(self, site: str) -> Doorbell | None:
        """Return a site's bell, None if it has none."""
        with self._changed:
            return self._bells.get(site)

    def sites(self) -> list[str]:
        """Return the sites whose bell is open, sorted."""
        with self._changed:
            return sorted(self._bells)

    def ring(self, site: str) -> None:
        """A message has come for a site: let it pull as soon as it is its turn."""
        with self._changed:
            if site in self._bells:
                self._messages[site] += 1
                self._pacing.want(site)
                self._ring()

    def fetched(self, site: str) -> None:
        """A site has looked: another's turn."""
        with self._changed:
            self._pacing.fetched(site)
            self._ring()

    def revoke(self, revocation: bytes) -> int:
        """Tell every site with an open bell that an operator was revoked; return how many."""
        with self._changed:
            bells = list(self._bells.values())
        for bell in bells:
            bell.revoke(revocation)
        return len(bells)

    def hang_up_all(self) -> None:
        """End all streams."""
        with self._changed:
            bells = list(self._bells.values())
        for bell in bells:
            bell.close()

    def _forget(self, site: str) -> None:
        self._messages.pop(site, None)
        self._pacing.gone(site)
        self._ring()

    def _ring(self) -> None:
        for site in self._pacing.due(time.monotonic()):
            self._bells[site].ring(self._messages.pop(site, 0))
        if self._idle and self._pacing.changes_at() is not None:
            self._idle = False
            self._changed.notify()

    def _pace(self) -> None:
        """Ring when the time of a site that does not look is over."""
        with self._changed:
            while not self._stopped:
                at = self._pacing.changes_at()
                self._idle = at is None
                self._changed.wait(None if at is None else max(0.0, at - time.monotonic()))
                self._ring()


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
        self, bell: Doorbell, site: str, question: SignedQuestion, timeout_s: float
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
