"""A second place for the site's anchors: what a restored copy of the site's home cannot take back.

A file on another file system (its last line is held against the books), or the system's log, which
is written to only: there a person compares. The file must be there already, be it empty: a file
system that is not mounted would otherwise look like a site without a past.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, ProtocolError
from fedfactory.contracts.plans import Anchor

SYSLOG: Final = Path("syslog")
SYSLOG_SOCKET: Final = "/dev/log"
_TAIL_BYTES: Final = 64 * 1024
_PRIORITY: Final = 10 * 8 + 6  # RFC 5424: facility authpriv, severity informational
_LOG_TIMEOUT_S: Final = 5.0


class SecondPlace:
    """Where anchors are kept a second time: a file, the system's log (`syslog`), or nowhere (None).

    `syslog_socket` is the Unix socket that the system's log listens at.
    """

    def __init__(self, path: Path | None, *, syslog_socket: str = SYSLOG_SOCKET) -> None:
        self._path = path
        self._syslog_socket = syslog_socket

    def record(self, anchor: Anchor) -> None:
        """Write an anchor down, durably.

        Raises:
            EnvironmentFailedError: it could not be written. Nothing must leave then.
        """
        if self._path is None:
            return
        try:
            if self._path == SYSLOG:
                _log(self._syslog_socket, f"fedfactory: anchor {to_json(anchor)}")
            else:
                _append(self._path, to_json(anchor).encode())
        except OSError as error:
            raise self._failed("written", error) from error

    def last(self) -> Anchor | None:
        """Return the anchor written last; None if there is none, or none can be read back.

        Raises:
            EnvironmentFailedError: the file is missing or cannot be read.
            IntegrityError: its last line is no anchor.
        """
        if self._path is None or self._path == SYSLOG:
            return None
        try:
            with self._path.open("rb") as file:
                start = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES)
                file.seek(start)
                lines = file.read(_TAIL_BYTES).split(b"\n")
        except OSError as error:
            raise self._failed("read", error) from error
        whole = [line for line in lines[:-1] if line]  # what follows the last newline was torn
        if not whole:
            return None
        try:
            return from_json(Anchor, whole[-1])
        except ProtocolError as error:
            raise IntegrityError(
                f"the last line of the second place {self._path} is no anchor: it was altered",
                diagnostic=str(error),
            ) from error

    def _failed(self, what: str, error: OSError) -> EnvironmentFailedError:
        if isinstance(error, FileNotFoundError) and self._path != SYSLOG:
            return EnvironmentFailedError(
                f"the second place {self._path} is missing: mount its file system, "
                "or make the file once, empty (touch), if it was never used"
            )
        return EnvironmentFailedError(
            f"the second place {self._path} cannot be {what}: {error.strerror or error}. "
            "What is not anchored does not leave"
        )


def _append(path: Path, text: bytes) -> None:
    file = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        line = (b"\n" if torn else b"") + text + b"\n"
        if os.write(file, line) != len(line):
            raise OSError(0, "it took part of a line; is it full?")
        os.fsync(file)
    finally:
        os.close(file)


def _log(address: str, text: str) -> None:
    # By hand: the standard handler keeps silent when the log is gone, and waits when it hangs.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(_LOG_TIMEOUT_S)
        log.connect(address)
        log.send(f"<{_PRIORITY}>{text}".encode())
