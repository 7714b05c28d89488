"""systemd's readiness protocol (sd_notify(3)): one datagram to the socket that it names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send e.g. 'READY=1', 'STOPPING=1', 'WATCHDOG=1'; nothing where no systemd asked for it."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(1.0)
        try:
            channel.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return  # systemd misses it and says so; work goes on


def watchdog_period_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return how often systemd wants 'WATCHDOG=1' at the least, in seconds; None if it does not."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return (
        int(microseconds) / 1e6 if mine and microseconds.isdigit() and int(microseconds) else None
    )
