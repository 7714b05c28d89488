"""One run that has its place: its process, and the link to it.

Performs what supervision.py decides. The process writes the journal and ends the run; what dies
here is started again, until it dies too often without getting on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from fedfactory.coordinator.flower_seam import flower_environment
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.running.link import LinkRing
from fedfactory.coordinator.running.run_log import LAST_GASP, RUN_LOG, last_word
from fedfactory.coordinator.runs import SETTINGS, Run, StopWish
from fedfactory.coordinator.supervision import RunSeen, next_step

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway.gateway import Gateway

log = logging.getLogger("fedfactory.coordinator")

# A process that wrote the run's results has nothing left to do but to end.
END_GRACE_S: Final = 10.0
# Linux closes a dying process's sockets a moment before it can be waited for.
ENDING_S: Final = 0.1
LONGEST_WORD: Final = 300
HEADER_ROOM_BYTES: Final = 64 * 1024
MODULE: Final = "fedfactory.coordinator.running.process"
State = Literal["going", "over", "suspended"]


class RunProcess:
    """Keeps one run going from construction to `close`. One thread calls it; any may tell it.

    `flower_home` is for Flower's files; `wake` hurries the one who calls `tick`.
    """

    def __init__(
        self, run: Run, gateway: Gateway, *, flower_home: Path, wake: Callable[[], object]
    ) -> None:
        self.run = run
        self._gateway = gateway
        self._flower_home = flower_home
        self._wake = wake
        self._process: subprocess.Popen[bytes] | None = None
        self._link: LinkServer | None = None
        self._started_at: float | None = None
        self._lock = threading.Lock()  # what is to be told, and the link that tells it
        self._left: dict[str, LinkRing] = {}
        self._stop_ring: LinkRing | None = None
        self._deaths = 0
        self._died_at = 0.0
        self._steps = -1
        self._ended_at: float | None = None
        self._stop: StopWish | None = None
        self._told_at = 0.0
        self._moved_before = gateway.traffic()
        initial = run.facts.initial
        gateway.open_run(run.run_id, run.sites, initial.bytes + HEADER_ROOM_BYTES)

    @property
    def pid(self) -> int | None:
        """The process that serves the run, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def tick(self, now: float) -> State:
        """Look after the run, once."""
        if self._ended_at is not None or self.run.ended:  # reopened: with a new process
            return self._end(now)
        self._tell_stop(now)
        self._note_death(now)
        step = next_step(self._seen(now))
        if step == "suspend":
            reason = (
                f"its process ended {self._deaths} times without getting on{self._last_words()};"
                f" see runs/{self.run.run_id}/{RUN_LOG};"
                f" `fedfactory resume {self.run.run_id}` lets it go on"
            )
            self.run.suspend(reason, time.time())
            log.error("run %s is suspended: %s", self.run.run_id, reason)
            return "suspended"
        if step == "start":
            self._start(now)
        elif step == "kill" and self._process is not None:
            log.warning("run %s: its process is stuck; killing it", self.run.run_id)
            self._process.kill()
        return "going"

    def left(self, site: str, code: str) -> None:
        """Say that a site of the run will not come back (`code` of REFUSALS); any thread."""
        if site in self.run.sites:
            ring = LinkRing(event="site_left", site=site, code=code)
            with self._lock:
                self._left[site] = ring
                if self._link is not None:
                    self._link.tell(ring)

    def close(self) -> None:
        """Take the run's place away: its process is killed, the journal keeps what it did."""
        self._drop_process()
        self._gateway.close_run(self.run.run_id)
        if self.run.ended:
            self._gateway.store.forget(self.run.run_id)

    # ---- within ----------------------------------------------------------------------------

    def _seen(self, now: float) -> RunSeen:
        return RunSeen(
            now=now,
            started_at=self._started_at,
            greeted=self._link is not None and self._link.greeted,
            alive_at=now if self._link is None else self._link.alive_at,
            deaths=self._deaths,
            died_at=self._died_at,
            unheard_since=self._unheard_since(),
        )

    def _unheard_since(self) -> float | None:
        """Return since when the process has been told to stop now, without having heard it."""
        if self._stop is None or self._stop.after_round or self._started_at is None:
            return None
        self.run.progress.update()
        return None if self.run.progress.stopping_now else max(self._told_at, self._started_at)

    def _start(self, now: float) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._launch(theirs)
        except BaseException:
            ours.close()
            raise
        with self._lock:
            self._link = LinkServer(
                ours,
                self._gateway,
                self.run.run_id,
                self.run.sites,
                moved_before=self._moved_before,
                rings=[*self._left.values(), *filter(None, [self._stop_ring])],
                over=self._wake,
            )
        self._started_at = now
        log.info("run %s has its process: %d", self.run.run_id, self._process.pid)

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """Start the process that serves the run at its end of the link."""
        command = [
            *(sys.executable, "-m", MODULE),
            *(str(theirs.fileno()), str(self.run.folder / SETTINGS), str(os.getpid())),
        ]
        with (self.run.folder / LAST_GASP).open("wb") as errors:
            return subprocess.Popen(
                command,
                env={**os.environ, **flower_environment(self._flower_home), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a group of its own: what a strategy starts ends with it
            )

    def _note_death(self, now: float) -> None:
        """See whether the process ended, and whether the run had got on since one last did."""
        if self._process is None or not self._has_ended(self._process):
            return
        code = self._process.returncode
        self._drop_process()
        self.run.progress.update()
        grown = self.run.progress.steps > self._steps
        self._deaths = 1 if grown else self._deaths + 1
        self._steps, self._died_at = self.run.progress.steps, now
        log.warning(
            "run %s: its process ended (%d) with code %s", self.run.run_id, self._deaths, code
        )

    def _has_ended(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the process ended; one that has hung up is about to."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S if self._link is not None and self._link.ended else 0)
        return process.returncode is not None

    def _last_words(self) -> str:
        """Return the end of the run's log, or what a process said that never opened it."""
        told = last_word(self.run.folder / LAST_GASP) or last_word(self.run.folder / RUN_LOG)
        return f" (last: {told[:LONGEST_WORD]})" if told else ""

    def _drop_process(self) -> None:
        """Kill what is left of the process and of its children, and end the link to it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        self._process = self._started_at = None

    def _tell_stop(self, now: float) -> None:
        wish = self.run.stop_wish()
        if wish is None or wish == self._stop:
            return
        first, self._stop, self._told_at = self._stop is None, wish, now
        if first:
            self.run.progress.update()
        if not (first and self.run.progress.stopping and wish.after_round):
            self._stop_ring = LinkRing(
                event="stop", reason=wish.reason, after_round=wish.after_round, at=time.time()
            )
            if self._link is not None:
                self._link.tell(self._stop_ring)

    def _end(self, now: float) -> State:
        if self._ended_at is None:
            self._ended_at = now
            log.info("run %s %s", self.run.run_id, self.run.summary()["status"])
        gone = self._process is None or self._process.poll() is not None
        return "over" if gone or now - self._ended_at > END_GRACE_S else "going"
