"""The administrator's word, looked up twice a second, and the heartbeat that systemd asks for.

Pausing needs nothing here: the pipeline asks before it begins work. Draining turns away what waits
for a device and lets the agent end; killing ends what runs. Both are done again at each look, so
that no order slips in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedfactory.systemd_notify import notify, watchdog_period_s
from site_agents import control
from site_agents.approvals import DECISION, FOLDER
from site_agents.control import CONTROL_FOLDER
from site_agents.executors.executor import Executor

log = logging.getLogger("site_agents.watch")

LOOK_S: Final = 0.5
# An agent that moves at all does so more often: its longest call waits 30 s for the gateway.
LONGEST_STILL_S: Final = 300.0


class Watch:
    """Runs beside the agent from `start` to `close`.

    `draining` is set while the agent takes no more work, by itself or by the administrator's word.
    `decided` is called when orders that wait for a person should be taken up again.
    """

    def __init__(
        self,
        home: Path,
        executor: Executor,
        *,
        draining: threading.Event,
        decided: Callable[[], None],
    ) -> None:
        self._home = home
        self._executor = executor
        self._draining = draining
        self._decided = decided
        self._moved_at = time.monotonic()
        self._closed = threading.Event()
        self._seen = ("running", self._decisions())
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Look once, then again and again."""
        self._look()
        self._thread.start()

    def moves(self) -> None:
        """The agent's own thread lives."""
        self._moved_at = time.monotonic()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        period_s = watchdog_period_s()
        next_at = time.monotonic()
        while not self._closed.wait(LOOK_S):
            try:
                self._look()
            except Exception:
                log.exception("the administrator's word could not be looked up")
            now = time.monotonic()
            if period_s is not None and now >= next_at and now - self._moved_at < LONGEST_STILL_S:
                notify("WATCHDOG=1")
                next_at = now + period_s / 3

    def _look(self) -> None:
        word = control.state(self._home)
        now = (word.name, self._decisions())
        if now[0] != self._seen[0]:
            reason = word.reason or "no reason given"
            log.warning("%s by %s: %s", word.name, word.by, reason)
        if word.name == "killed":
            self._executor.stop_work()
        if word.name == "draining":
            self._draining.set()
        if self._draining.is_set():
            self._executor.drain()
        seen, self._seen = self._seen, now
        if now != seen:
            self._decided()

    def _decisions(self) -> frozenset[tuple[str, int]]:
        """Return the files of people's decisions, with their times."""
        found = set()
        for path in (self._home / CONTROL_FOLDER / FOLDER).glob(f"*{DECISION}"):
            try:
                found.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return frozenset(found)
