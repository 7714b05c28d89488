"""Questions that came with the doorbell: answered beside the orders, by one thread, few in line."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.questions import Answer

log = logging.getLogger("site_agents.answering")

MOST_IN_LINE: Final = 16


class Answering:
    """`answer` is Questions', `send` puts an answer on the wire."""

    def __init__(
        self, answer: Callable[[str], Answer | None], send: Callable[[str, Answer], None]
    ) -> None:
        self._answer = answer
        self._send = send
        self._line: queue.Queue[tuple[str, str] | None] = queue.Queue(MOST_IN_LINE)
        self._thread: threading.Thread | None = None

    def take(self, question_id: str, text: str) -> None:
        """Answer a question soon; returns at once. One too many stays unanswered."""
        try:
            self._line.put_nowait((question_id, text))
        except queue.Full:
            log.warning("a question is not answered: %d wait", MOST_IN_LINE)
            return
        if self._thread is None:
            # Most agents are never asked. A thread that hangs must not keep one alive.
            self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Answer no more: what waits is forgotten."""
        if self._thread is None:
            return
        with suppress(queue.Empty):
            while True:
                self._line.get_nowait()
        self._line.put(None)

    def _run(self) -> None:
        while (asked := self._line.get()) is not None:
            question_id, text = asked
            try:
                answer = self._answer(text)
                if answer is not None:
                    self._send(question_id, answer)
            except FedfactoryError as error:
                log.warning("an answer could not be sent: %s", error)
            except Exception:
                # A fault of ours: the question stays unanswered, the agent lives on.
                log.exception("a question could not be answered")
