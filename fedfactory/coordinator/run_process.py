"""One run that has its place: its link at the gateway, its Flower run, its ServerApp.

Performs what supervision.py decides. The ServerApp writes the journal and ends the run; what dies
here is started again, until it dies too often without getting on.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from fedfactory.coordinator.flower_seam import SuperLinkClient, SuperLinkGoneError
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.running.run_log import SERVERAPP_LOG, last_word
from fedfactory.coordinator.runs import LINK, SETTINGS, Run, StopWish
from fedfactory.coordinator.supervision import RunSeen, RunStep, next_step

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway.gateway import Gateway
    from fedfactory.coordinator.superlink import SuperLink

log = logging.getLogger("fedfactory.coordinator")

# A ServerApp that wrote its results has nothing left to do but to end.
END_GRACE_S: Final = 10.0
LOOK_EVERY_S: Final = 0.5
LONGEST_WORD: Final = 300
HEADER_ROOM_BYTES: Final = 64 * 1024
State = Literal["going", "over", "suspended"]
Strangers = Callable[[], frozenset[int]]


class RunProcess:
    """Keeps one run going from construction to `close`. One thread calls it."""

    def __init__(self, run: Run, gateway: Gateway, superlink: SuperLink) -> None:
        self.run = run
        self._gateway = gateway
        self._superlink = superlink
        self._epoch = superlink.epoch
        self._handed_at: float | None = None
        self._flower_run = 0
        self._came = self._begun = False
        self._others: frozenset[int] = frozenset()
        self._old_pid: int | None = None
        self._deaths = 0
        self._died_at = 0.0
        self._steps = -1
        self._looked_at = 0.0
        self._ended_at: float | None = None
        self._stop: StopWish | None = None
        initial = run.taken.plan.terms.initial
        gateway.open_run(run.run_id, run.sites, initial.bytes + HEADER_ROOM_BYTES)
        try:
            self.link = LinkServer(run.folder / LINK, gateway, run.run_id, run.sites)
        except BaseException:
            gateway.close_run(run.run_id)
            raise

    def tick(self, now: float, client: SuperLinkClient | None, strangers: Strangers) -> State:
        """Look after the run, once; `client` is the SuperLink that knows the sites (None: none).

        `strangers` finds the ServerApps that live and have said hello to no run.
        """
        if self._ended_at is not None or self.run.ended:  # reopened: with a new process and link
            return self._end(now)
        # Looked for before we see whether one has said hello: who says it meanwhile has not died.
        silent = frozenset() if self._came else strangers()
        self._tell_stop()
        if self._superlink.epoch != self._epoch or not self._superlink.starts_apps:
            self._forget_process()  # it ends with them: no death of its own
        if self._handed_at is not None and self.link.pid not in (None, self._old_pid):
            self._came = True
        self._note_death(now, client, silent)
        step = next_step(self._seen(now, client))
        if step == "suspend":
            reason = (
                f"its process ended {self._deaths} times without getting on"
                f"{self._last_words(client)}; see runs/{self.run.run_id}/{SERVERAPP_LOG};"
                f" `fedfactory resume {self.run.run_id}` lets it go on"
            )
            self.run.suspend(reason, time.time())
            log.error("run %s is suspended: %s", self.run.run_id, reason)
            return "suspended"
        if step == "start":
            self._others = strangers()  # of runs that have just ended
        self._perform(step, now, client)
        return "going"

    def close(self) -> None:
        """Take the run's place away; a ServerApp that is here ends by itself, or is killed."""
        if self._flower_run and (client := self._superlink.client):
            with suppress(SuperLinkGoneError):
                client.stop_run(self._flower_run)
        self._kill()
        self.link.close()
        self._gateway.close_run(self.run.run_id)
        if self.run.ended:
            self._gateway.store.forget(self.run.run_id)

    # ---- within ----------------------------------------------------------------------------

    def _seen(self, now: float, client: SuperLinkClient | None) -> RunSeen:
        return RunSeen(
            now=now,
            flower_ready=client is not None and self._superlink.starts_apps,
            starter_stopped=self._superlink.is_starter_stopped,
            handed_at=self._handed_at,
            here=self._came,
            alive_at=self.link.alive_at,
            deaths=self._deaths,
            died_at=self._died_at,
        )

    def _perform(self, step: RunStep, now: float, client: SuperLinkClient | None) -> None:
        match step:
            case "start":
                assert client is not None
                self._hand_over(now, client)
            case "kill":
                log.warning("run %s: its ServerApp is frozen; killing it", self.run.run_id)
                self._kill()
            case "kill_superexec":
                log.warning("run %s: SuperExec has not started it; killing that", self.run.run_id)
                self._superlink.kill_superexec()
            case "wait":
                pass

    def _hand_over(self, now: float, client: SuperLinkClient) -> None:
        if self._flower_run:  # a start that Flower still owes us must not come on top
            with suppress(SuperLinkGoneError):
                client.stop_run(self._flower_run)
        try:
            self._flower_run = client.start_run(self.run.folder / LINK, self.run.folder / SETTINGS)
        except SuperLinkGoneError as error:
            log.warning("run %s could not be handed over: %s", self.run.run_id, error.diagnostic)
            return
        log.info("run %s handed to Flower", self.run.run_id)
        self._handed_at, self._came, self._begun = now, False, False

    def _note_death(
        self, now: float, client: SuperLinkClient | None, silent: frozenset[int]
    ) -> None:
        """See whether the ServerApp ended, and whether it had got on since it last did."""
        if self._handed_at is None:
            return
        if self._came:
            if not self.link.ended:
                return
            why = ""
        else:
            found = self._flower_end(now, client)
            mine = silent - self._others
            if found is None and self._begun and not mine:
                found = "before it said hello"  # killed: Flower takes a minute to notice
            self._begun = self._begun or bool(mine)
            if found is None:
                return
            why = found
        self.run.progress.update()
        grown = self.run.progress.steps > self._steps
        self._deaths = 1 if grown else self._deaths + 1
        self._steps, self._died_at = self.run.progress.steps, now
        log.warning("run %s: its ServerApp ended (%d) %s", self.run.run_id, self._deaths, why)
        self._forget_process()

    def _flower_end(self, now: float, client: SuperLinkClient | None) -> str | None:
        """Ask Flower whether the run is over that nobody has come for yet; None if not."""
        if client is None or now - self._looked_at < LOOK_EVERY_S:
            return None
        self._looked_at = now
        with suppress(SuperLinkGoneError):
            return client.why_ended(self._flower_run)
        return None

    def _last_words(self, client: SuperLinkClient | None) -> str:
        """Return the end of the run's log, or what Flower knows of one that never wrote any."""
        told: str | None = last_word(self.run.folder)
        if not told and client is not None:
            with suppress(SuperLinkGoneError):
                told = client.why_ended(self._flower_run)
        return f" (last: {told[:LONGEST_WORD]})" if told else ""

    def _forget_process(self) -> None:
        self._epoch = self._superlink.epoch
        self._old_pid = self.link.pid
        self._handed_at, self._came = None, False

    def _tell_stop(self) -> None:
        wish = self.run.stop_wish()
        if wish is None or wish == self._stop:
            return
        first, self._stop = self._stop is None, wish
        if first:
            self.run.progress.update()
        if not (first and self.run.progress.stopping and wish.after_round):
            self.link.stop(wish.reason, after_round=wish.after_round)

    def _end(self, now: float) -> State:
        if self._ended_at is None:
            self._ended_at = now
            log.info("run %s %s", self.run.run_id, self.run.summary()["status"])
        gone = self.link.pid is None
        return "over" if gone or now - self._ended_at > END_GRACE_S else "going"

    def _kill(self) -> None:
        if (pid := self.link.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
