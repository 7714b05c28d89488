"""What waits for sites, and where their replies go: the open runs' mailboxes, asked in turn."""

from __future__ import annotations

import threading
from typing import Protocol

from fedfactory.coordinator.flower_seam import Fetched


class Mailbox(Protocol):
    """One run's messages. Usable from any thread."""

    def fetch(self, site: str) -> Fetched | None:
        """Return what waited longest for a site, as delivered; None if nothing waits."""

    def waits(self, site: str) -> bool:
        """Whether a message may wait for a site."""

    def reply(self, site: str, message_id: str, text: str, digest: str | None) -> bool | None:
        """Take a site's reply; whether anybody waited for it. None: no message of this run's.

        `digest` names the upload that comes with it.

        Raises:
            IdentityError: the message did not go to this site.
            EnvironmentFailedError, OSError: it could not be taken; it may be sent again.
        """


class Mail:
    """The open mailboxes. The run that a site fetched from last is the last to be asked for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boxes: dict[str, Mailbox] = {}
        self._fetched: dict[str, dict[str, None]] = {}  # by site: the runs, the latest last

    def open(self, run_id: str, box: Mailbox) -> None:
        """Let a run's messages be fetched and answered."""
        with self._lock:
            self._boxes[run_id] = box

    def close(self, run_id: str, box: Mailbox) -> None:
        """Let them be no more, unless another box has taken the place."""
        with self._lock:
            if self._boxes.get(run_id) is box:
                del self._boxes[run_id]
                for runs in self._fetched.values():
                    runs.pop(run_id, None)

    def fetch(self, site: str) -> Fetched | None:
        """Return the site's next message, and whether another waits; None if there is none."""
        boxes = self._in_turn(site)
        while boxes:
            run_id, box = boxes.pop(0)
            if (found := box.fetch(site)) is None:
                continue
            with self._lock:
                if run_id in self._boxes:
                    runs = self._fetched.setdefault(site, {})
                    runs.pop(run_id, None)
                    runs[run_id] = None
            more = found.more or any(other.waits(site) for _, other in boxes)
            return Fetched(message_id=found.message_id, text=found.text, more=more)
        return None

    def _in_turn(self, site: str) -> list[tuple[str, Mailbox]]:
        with self._lock:
            fetched = self._fetched.get(site, {})
            new = [run_id for run_id in self._boxes if run_id not in fetched]
            return [(run_id, self._boxes[run_id]) for run_id in (*new, *fetched)]

    def reply(self, site: str, message_id: str, text: str, digest: str | None) -> bool:
        """Take a site's reply; whether anybody waited for it. Raises what Mailbox.reply raises."""
        with self._lock:
            boxes = list(self._boxes.values())
        answers = (box.reply(site, message_id, text, digest) for box in boxes)
        return next((answer for answer in answers if answer is not None), False)
