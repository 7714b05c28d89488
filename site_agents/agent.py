"""The site's daemon: one outbound connection, orders in, answers out.

It sleeps until the gateway's doorbell rings, polls slowly in between, and comes back by itself.
What an order means is decided in pipeline.py, who works on it in dispatch.py, what happens while
the line stands in session.py; this file brings it up again and again.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Final

from fedfactory.contracts.errors import FedfactoryError, IdentityError
from fedfactory.systemd_notify import notify
from site_agents.answering import Answering
from site_agents.assembly import build_pipeline, build_questions
from site_agents.backoff import Backoff
from site_agents.blob_cache import BlobCache
from site_agents.books import Books
from site_agents.config import AgentConfig
from site_agents.dispatch import Dispatcher
from site_agents.executors.executor import Executor
from site_agents.joining import join, wait_for_another
from site_agents.line import Line
from site_agents.pipeline import Transfer
from site_agents.revocations import Revocations
from site_agents.session import Session
from site_agents.status import StatusBoard
from site_agents.watch import Watch

log = logging.getLogger("site_agents.agent")

_SAID: Final = {
    False: "not connected, and tries on: %s",
    True: "not connected, and tries again rarely, or once the site is enrolled anew: %s",
}


class Agent:
    """One site's agent. `run` returns once it has drained, or was stopped.

    With `linger_s` it drains by itself once it had nothing in hand for so many seconds, and a lost
    connection is an error.
    """

    def __init__(
        self, config: AgentConfig, executor: Executor, books: Books, linger_s: float | None = None
    ) -> None:
        self._config = config
        self._executor = executor
        self._books = books
        self._linger_s = linger_s
        self._board = StatusBoard(config.home)
        self._revocations = Revocations(config.home, books.record)
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._rung = threading.Event()

    def drain(self) -> None:
        """Finish the orders under way and take no more; safe from a signal handler."""
        self._draining.set()
        self._rung.set()

    def stop(self) -> None:
        """End, also in the middle of an order; safe from a signal handler."""
        self._stopped.set()
        self.drain()

    def run(self) -> None:
        """Enrol if need be, connect and serve.

        Raises:
            FedfactoryError: with `linger_s`, the site is not enrolled, or refused, or the gateway
                is away.
        """
        patient = self._linger_s is None
        if join(self._config, self._board, self._draining, patient=patient):
            line = Line(self._config)
            try:
                self._live(line)
            finally:
                line.close()
        self._board.connection("stopped")

    def _live(self, line: Line) -> None:
        models = BlobCache(self._config.home / "spool" / "models", line)
        transfer = Transfer(fetch=models.fetch, send=line.upload)
        pipeline = build_pipeline(self._config, self._books, self._executor, transfer)
        dispatcher = Dispatcher(
            answer=pipeline.answer, send=line.send, board=self._board, changed=self._rung.set
        )
        questions = build_questions(self._config, self._books, self._executor)
        watch = Watch(
            self._config.home,
            self._executor,
            draining=self._draining,
            decided=lambda: self._take_up(dispatcher),
        )
        watch.start()
        answering = Answering(questions.answer, line.answer)
        try:
            self._serve(line, dispatcher, answering, watch)
        finally:
            notify("STOPPING=1")
            answering.close()
            watch.close()

    def _serve(
        self, line: Line, dispatcher: Dispatcher, answering: Answering, watch: Watch
    ) -> None:
        backoff, said = Backoff(), ""
        while not self._is_done(dispatcher):
            watch.moves()
            session = Session(
                line=line,
                dispatcher=dispatcher,
                answering=answering,
                revocations=self._revocations,
                watch=watch,
                rung=self._rung,
                draining=self._draining,
                is_done=lambda: self._is_done(dispatcher),
                linger_s=self._linger_s,
            )
            error = self._connect(line, session)
            reason = _reason(error)
            if error is not None and reason != said:
                log.warning(_SAID[isinstance(error, IdentityError)], reason)
            said = reason
            if error is not None and self._linger_s is not None and not dispatcher.is_working:
                raise error
            if self._draining.is_set() and not dispatcher.is_working:
                break  # a reply that is left is in the ledger: asked again, it is sent again
            if not session.renewed:
                self._pause(backoff, error, session.lasted_s)

    def _connect(self, line: Line, session: Session) -> FedfactoryError | None:
        """Serve until the line is lost; return why, None if it was hung up or is to be anew."""
        try:
            line.refresh()
            self._board.certificate(line.ends_at)
            session.begin()
            log.info("connected to %s", self._config.gateway_address)
            self._board.connection("connected", self._config.gateway_address)
            session.attend()
        except FedfactoryError as error:
            refused = isinstance(error, IdentityError)
            self._board.connection("refused" if refused else "connecting", str(error))
            return error
        finally:
            session.end()
        return None

    def _pause(self, backoff: Backoff, error: FedfactoryError | None, session_s: float) -> None:
        # While it drains it waits for the end of its work alone.
        until = self._stopped if self._draining.is_set() else self._draining
        chance = random.random()  # noqa: S311
        if isinstance(error, IdentityError):
            wait_for_another(self._config, until, backoff.after_refusal(chance))
        else:
            until.wait(backoff.after_cut(session_s, chance))

    def _take_up(self, dispatcher: Dispatcher) -> None:
        dispatcher.ask_again()
        self._rung.set()

    def _is_done(self, dispatcher: Dispatcher) -> bool:
        return self._stopped.is_set() or (self._draining.is_set() and dispatcher.is_idle)


def _reason(error: FedfactoryError | None) -> str:
    """Return why the line is down; a refusal's sentence is all there is to know of it."""
    if error is None or isinstance(error, IdentityError):
        return str(error or "")
    return f"{error} {error.diagnostic or ''}".rstrip()
