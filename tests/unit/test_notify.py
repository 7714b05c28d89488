"""What systemd would hear: a datagram on the socket that it names."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfactory.systemd_notify import notify, watchdog_period_s
from tests.patience import HANG_S


@pytest.fixture
def systemd(own_place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("/proc/self/cwd/notify")  # a short path, as sockets need it
        listener.settimeout(HANG_S)
        yield listener


def test_it_says_what_it_is_told(systemd: socket.socket):
    notify("READY=1", {"NOTIFY_SOCKET": systemd.getsockname()})
    assert systemd.recv(100) == b"READY=1"


def test_an_abstract_socket_is_named_by_an_at_sign():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"fedfactory-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.settimeout(HANG_S)
        notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/at/all"])
def test_without_a_systemd_nothing_happens(address: str):
    notify("READY=1", {"NOTIFY_SOCKET": address} if address else {})


def test_the_watchdogs_period():
    mine = str(os.getpid())
    assert watchdog_period_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": mine}) == 30.0
    assert watchdog_period_s({"WATCHDOG_USEC": "30000000"}) == 30.0
    assert watchdog_period_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_period_s({"WATCHDOG_USEC": "0"}) is None
    assert watchdog_period_s({"WATCHDOG_USEC": "soon"}) is None
    assert watchdog_period_s({}) is None
