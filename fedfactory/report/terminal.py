"""Where the report is written: a stream that outlives its reader, and text that is safe to show."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TextIO, cast


def lasting(stream: TextIO) -> TextIO:
    """Return `stream` as one that passes text on until its reader has gone, then drops it."""
    return cast(TextIO, _Lasting(stream))  # all of TextIO that print and rich use


class _Lasting(io.TextIOBase):
    """The one place that knows about readers that go away (closed pipe, hung-up terminal).

    What writes here never sees an error, so neither rich (which exits the process on a closed
    pipe) nor the run's clean-up is cut short by one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own: rich chooses its characters by it."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether the stream was a terminal when asked."""
        return not self._gone and self._stream.isatty()

    def fileno(self) -> int:
        """The stream's own: rich measures the terminal through it."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or drop, `text`."""
        if not self._gone:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # EPIPE, EIO; ValueError: closed on our side
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        """Let what is still buffered drain to nowhere, or the interpreter's exit trips over it."""
        self._gone = True
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def shown(text: str) -> str:
    """Return `text` with control characters made visible: what others wrote moves no cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
