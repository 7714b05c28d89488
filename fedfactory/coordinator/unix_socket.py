"""A Unix stream socket for two processes of one user: made private, connected, hung up."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError

# A peer that has stopped reading for this long is taken for dead.
SEND_TIMEOUT_S: Final = 10


def listen(path: Path) -> socket.socket:
    """Listen at `path` (0600 from its first moment), replacing a socket left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    os.fchmod(listener.fileno(), 0o600)
    with _short_name(path) as name:
        listener.bind(name)
    listener.listen()
    return listener


def connect(path: Path) -> socket.socket:
    """Connect to the socket at `path`.

    Raises:
        EnvironmentFailedError: nobody listens there.
    """
    client = socket.socket(socket.AF_UNIX)
    try:
        with _short_name(path) as name:
            client.connect(name)
    except OSError as error:
        client.close()
        raise EnvironmentFailedError(f"nobody listens at {path}", diagnostic=str(error)) from error
    return client


def bound_writes(client: socket.socket) -> None:
    """Make a write fail when the peer has not read for SEND_TIMEOUT_S."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))


def is_same_user(client: socket.socket) -> bool:
    """Whether the process at the other end runs as our user."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.getuid())


def hang_up(end: socket.socket) -> None:
    """Close a socket so that threads blocked on it, here and at the peer, come back."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """Name `path` through its open folder: a socket's own name has room for 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
