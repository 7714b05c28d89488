"""One connected stretch of an agent's life: the doorbell heard, orders in and replies out.

It ends when the line is cut, the gateway hangs up, or a new certificate is to be used. What is
worked on goes on meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.wire.rpc.transfers import CALL_TIMEOUT_S
from site_agents.answering import Answering
from site_agents.dispatch import Dispatcher
from site_agents.line import Line
from site_agents.revocations import Revocations
from site_agents.watch import Watch

log = logging.getLogger("site_agents.session")

POLL_S: Final = 30.0
# Between two tries to renew, while the old certificate still holds: the first soon.
RENEW_AGAIN_S: Final = 5.0
RENEW_AGAIN_AT_MOST_S: Final = 3600.0


class Session:
    """`rung` wakes it, `draining` keeps it from taking orders, `is_done` ends it."""

    def __init__(
        self,
        *,
        line: Line,
        dispatcher: Dispatcher,
        answering: Answering,
        revocations: Revocations,
        watch: Watch,
        rung: threading.Event,
        draining: threading.Event,
        is_done: Callable[[], bool],
        linger_s: float | None,
    ) -> None:
        self._line = line
        self._dispatcher = dispatcher
        self._answering = answering
        self._revocations = revocations
        self._watch = watch
        self._rung = rung
        self._draining = draining
        self._is_done = is_done
        self._linger_s = linger_s
        self._heard = threading.Event()  # or found out that the gateway does not
        self._not_heard: FedfactoryError | None = None
        self._lost = threading.Event()
        self._may_wait = threading.Event()  # a message, at the coordinator
        self._look_at = 0.0
        self._began_at: float | None = None
        self.renewed = False
        """Whether it ended so that the next one uses a new certificate."""
        self._renew_at = 0.0
        self._renew_again_s = RENEW_AGAIN_S

    def begin(self) -> None:
        """Listen to the doorbell, until the gateway says that it hears this site.

        Raises:
            FedfactoryError: the gateway cannot be reached, or does not take the call.
        """
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._heard.wait(CALL_TIMEOUT_S):
            raise EnvironmentFailedError(f"the gateway did not answer within {CALL_TIMEOUT_S:g} s")
        if self._not_heard is not None:
            raise self._not_heard
        self._set_renewal()
        self._began_at = time.monotonic()

    @property
    def lasted_s(self) -> float:
        """For how many seconds the line has stood; 0 if it never did."""
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    def attend(self) -> None:
        """Take orders and send replies until the session is over or nothing is left to do.

        Raises:
            FedfactoryError: the gateway is away.
        """
        busy_at = time.monotonic()
        while not (self._lost.is_set() or self._is_done()):
            self._watch.moves()
            self._rung.clear()
            self._dispatcher.send_unsent()
            self._take_orders()
            if not self._dispatcher.is_idle:
                busy_at = time.monotonic()
            if self._linger_s is not None and time.monotonic() - busy_at >= self._linger_s:
                self._draining.set()
            if time.monotonic() >= self._renew_at:
                self._renew()
            if not self._is_done():
                now = time.monotonic()
                self._rung.wait(max(0.0, min(self._look_at, self._renew_at) - now))

    def _take_orders(self) -> None:
        """Take what waits for us, as far as there is room; look by ourselves now and then."""
        if time.monotonic() >= self._look_at:
            self._may_wait.set()  # a ring may have been lost
            self._look_at = time.monotonic() + self._patience_s()
        while self._takes_one():
            self._may_wait.clear()  # before the call: a ring during it asks for another
            fetched = self._line.fetch()
            if fetched is None:
                continue
            if fetched.more:
                self._may_wait.set()
            self._dispatcher.submit(fetched)

    def _takes_one(self) -> bool:
        wanted = self._may_wait.is_set() and not self._draining.is_set()
        return wanted and self._dispatcher.has_room

    def end(self) -> None:
        """Let the threads beside it go."""
        self._lost.set()

    def _patience_s(self) -> float:
        return POLL_S if self._linger_s is None else self._linger_s

    # ---- the certificate -----------------------------------------------------------------------

    def _renew(self) -> None:
        """Renew the certificate, and end the session for the next to use it."""
        try:
            self._line.renew()
        except FedfactoryError as error:
            log.warning("the certificate could not be renewed, tries again: %s", error)
            self._renew_at = time.monotonic() + self._renew_again_s
            self._renew_again_s = min(2 * self._renew_again_s, RENEW_AGAIN_AT_MOST_S)
            return
        log.info("the certificate is renewed")
        self.renewed = True
        self._lose()

    def _set_renewal(self) -> None:
        due_in_s = self._line.renewal_due_in_s()
        self._renew_at = time.monotonic() + max(due_in_s, RENEW_AGAIN_S if due_in_s < 0 else 0.0)

    # ---- beside the orders ---------------------------------------------------------------------

    def _listen(self) -> None:
        """Turn the gateway's rings into wake-ups; the end of the stream is the session's."""
        try:
            for ring in self._line.listen():
                if self._lost.is_set():
                    return
                self._heard.set()
                if ring.revocation is not None:
                    self._revocations.take(ring.revocation)
                if ring.question is not None:
                    self._answering.take(ring.question_id, ring.question)
                self._may_wait.set()
                self._rung.set()
        except FedfactoryError as error:
            if not self._heard.is_set():
                self._not_heard = error
            elif not (self._draining.is_set() or self._lost.is_set()):  # else it is we who hung up
                log.warning("the connection to the coordinator was lost: %s", error)
        self._lose()
        self._heard.set()

    def _lose(self) -> None:
        self._lost.set()
        self._rung.set()
