"""Follows a run through a coordinator's watch: every event once, whatever breaks in between.

A thread reads the stream and reconnects by itself; the caller's thread writes the run folder and
yields. The folder is the memory: a follower begun again there goes on after what it holds.
"""

from __future__ import annotations

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from fedfactory.contracts.errors import FedfactoryError, ProtocolError, UnreachableError
from fedfactory.contracts.model import BlobRef
from fedfactory.operator.run_folder import Line, RunFolder, read_sent
from fedfactory.rounds.events import Event
from fedfactory.wire.operations import ModelFound, RunStatus, StopMode, Watched

log = logging.getLogger("fedfactory.operator.following")

TICK_S: Final = 0.1
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STOP_AGAIN_S: Final = 1.0
_HELD: Final = 1000  # pieces read ahead of the caller: a slow reader holds the stream back


class Watching(Protocol):
    """What a follower needs of an OperatorClient."""

    def watch(self, run_id: str, after: int = 0) -> Iterator[Watched]:
        """Yield the run's events from number `after` on."""

    def stop(self, run_id: str, mode: StopMode) -> str:
        """Stop the run."""

    def find_model(self, run_id: str, number: int | None) -> ModelFound:
        """Return the run's model."""

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a model."""


class Follower:
    """Follows `run_id` and keeps it in `folder` (see run_folder.py for what lies there).

    `status` is the run's as last told, None before the first word. `trouble` says why nothing comes
    now (the coordinator cannot be reached), None while all is well. `summary` is the result, once
    the run has ended.

    Raises:
        UsageError: another process writes this folder, or it holds another run.
    """

    def __init__(self, client: Watching, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self.status: RunStatus | None = None
        self.trouble: UnreachableError | None = None
        self.summary: dict[str, Any] | None = None
        self.folder = folder
        self._client = client
        self._files = RunFolder(folder, run_id)
        self._stop_wanted: StopMode | None = None
        self._stop_again_at = 0.0
        self._reader = _Reader(client, run_id, self._files.count)

    def events(self, *, tick_s: float = TICK_S) -> Iterator[Event | None]:
        """Yield first what the folder held, then each event as it comes, once it is written.

        None is yielded when nothing came for `tick_s` seconds, so that the caller can look around.
        Ends when the run has, with its model and summary in the folder.

        Raises:
            IdentityError, UsageError, RefusedError: the coordinator will never show it.
            IntegrityError, ProtocolError: what it showed is no run's events.
        """
        yield from self._files.held
        self._reader.start()
        while self.summary is None:
            self._pass_stop_on()
            pieces = self._reader.take(tick_s)
            self.trouble = self._reader.trouble
            lines, ended = self._sorted(pieces)
            self._files.add(lines)
            for line in lines:
                yield line.event
            if ended is not None:
                yield from self._keep_result(ended, tick_s)
            elif not lines:
                yield None

    def ask_to_stop(self, mode: StopMode) -> None:
        """Have the run stopped; asked again by `events` until the coordinator has heard it."""
        self._stop_wanted = mode

    def close(self) -> None:
        """Stop following; the run goes on."""
        self._reader.stop()
        self._files.close()

    def _sorted(self, pieces: list[Watched]) -> tuple[list[Line], str | None]:
        """Return the events that are new, and the summary if it came."""
        lines: list[Line] = []
        ended = None
        for piece in pieces:
            self.status = piece.status
            if piece.event is not None:
                line = read_sent(self.run_id, piece.event)
                if line.number >= self._files.count + len(lines):
                    lines.append(line)
            ended = piece.summary or ended
        return lines, ended

    def _keep_result(self, text: str, tick_s: float) -> Iterator[None]:
        """Fetch the model, then write the summary; waits out a coordinator that is away."""
        try:
            summary = json.loads(text)
            model = summary["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError("the run's summary is not JSON of a result") from error
        pauses = _Pauses()
        while True:
            try:
                has_model = self._fetched(model.get("digest"))
            except UnreachableError as error:
                self.trouble = error
                for _ in range(max(1, int(pauses.next_s() / tick_s))):
                    time.sleep(tick_s)
                    yield None
            else:
                self.trouble = None
                self.summary = self._files.end(summary, model=has_model)
                return

    def _fetched(self, digest: str | None) -> bool:
        """Have the model that the summary names in the folder; False if it is kept nowhere."""
        ref = self._client.find_model(self.run_id, None).model
        if ref is None or ref.digest != digest:
            return False
        self._client.download(ref, self._files.model_file())
        return True

    def _pass_stop_on(self) -> None:
        if self._stop_wanted is None or time.monotonic() < self._stop_again_at:
            return
        try:
            self._client.stop(self.run_id, self._stop_wanted)
        except UnreachableError as error:
            self._stop_again_at = time.monotonic() + STOP_AGAIN_S
            self.trouble = error
        except FedfactoryError as error:  # it has ended meanwhile: the watch tells
            log.info("the run was not stopped: %s", error)
            self._stop_wanted = None
        else:
            self._stop_wanted = None


class _Pauses:
    """Growing pauses between tries, with jitter: many followers do not come back at once."""

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(0.5, 1.0) * longest  # noqa: S311


class _Reader:
    """The thread that reads the watch; `take` hands over what came."""

    def __init__(self, client: Watching, run_id: str, after: int) -> None:
        self.trouble: UnreachableError | None = None
        self._client = client
        self._run_id = run_id
        self._after = after
        self._came: queue.Queue[Watched | FedfactoryError] = queue.Queue(_HELD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def take(self, wait_s: float) -> list[Watched]:
        """Return what came, waiting for the first piece at most `wait_s` seconds.

        Raises:
            FedfactoryError: the watch ended for good, with this.
        """
        pieces: list[Watched] = []
        try:
            found = self._came.get(timeout=wait_s)
            while True:
                if isinstance(found, FedfactoryError):
                    if pieces:  # they come first; the error is met at the next look
                        self._came.put(found)
                        return pieces
                    raise found
                pieces.append(found)
                found = self._came.get_nowait()
        except queue.Empty:
            return pieces

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()

    def _read(self) -> None:
        pauses = _Pauses()
        while not self._stopped.is_set():
            try:
                for piece in self._client.watch(self._run_id, self._after):
                    pauses, self.trouble = _Pauses(), None
                    self._hand_over(piece)
                    if self._stopped.is_set() or piece.summary is not None:
                        return
                    self._after = max(self._after, piece.number)
            except UnreachableError as error:
                self.trouble = error
            except FedfactoryError as error:
                self._hand_over(error)
                return
            # A stream that ends without a summary is a coordinator that is going down.
            self._stopped.wait(pauses.next_s())

    def _hand_over(self, found: Watched | FedfactoryError) -> None:
        while not self._stopped.is_set():
            try:
                self._came.put(found, timeout=0.1)
            except queue.Full:
                continue
            return
