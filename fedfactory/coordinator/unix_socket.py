"""A pair of connected sockets between the daemon and a run's process: writes bounded, hung up."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

# A peer that has stopped reading for this long is taken for dead.
SEND_TIMEOUT_S: Final = 10


def bound_writes(client: socket.socket) -> None:
    """Make a write fail when the peer has not read for SEND_TIMEOUT_S."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))


def hang_up(end: socket.socket) -> None:
    """Close a socket so that threads blocked on it, here and at the peer, come back."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
