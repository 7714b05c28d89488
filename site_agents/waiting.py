"""How many messages wait for this site at the coordinator, as far as its doorbell told."""

from __future__ import annotations

import threading


class Waiting:
    """Says whether to pull. Usable from several threads; one of them pulls.

    A pull that finds nothing costs SuperLink more than one that does: so many messages as were told
    are pulled and no more, unless nobody knows their number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._unknown = True
        self._searches = False

    def told(self, number: int) -> None:
        """So many more wait; 0: nobody knows how many, if any."""
        with self._lock:
            self._number += number
            self._unknown = self._unknown or number == 0

    def pulls(self) -> bool:
        """Whether to pull now: once, for a message that was told of, or to see whether one is."""
        with self._lock:
            self._searches = self._unknown
            if self._unknown:  # those told of so far are among what it finds
                self._unknown, self._number = False, 0
                return True
            if self._number == 0:
                return False
            self._number -= 1
            return True

    def found(self) -> None:
        """The pull found a message: where nobody knows the number there may be more."""
        with self._lock:
            self._unknown = self._unknown or self._searches
