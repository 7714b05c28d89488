"""One coordinator to a home: a lock on HOME/coordinator.lock, held while a daemon runs.

The kernel frees the lock when its holder ends, however it ends; what the file says is for people.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError

LOCK_FILE: Final = "coordinator.lock"


@contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Hold a home for one daemon.

    Raises:
        EnvironmentFailedError: another process holds it (says which), or the file cannot be
            written or locked.
    """
    path = home / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EnvironmentFailedError(f"{path} cannot be written ({error.strerror})") from error
    try:
        _lock(handle, path)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        _say(handle, f"process {os.getpid()} on {socket.gethostname()} since {now}")
        try:
            yield
        finally:
            _say(handle, "")
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(handle, 256, 0).decode("utf-8", "replace") or "a process that just began"
        raise EnvironmentFailedError(
            f"another coordinator runs on {path.parent}: {who}; stop it first"
        ) from error
    except OSError as error:
        raise EnvironmentFailedError(
            f"{path} cannot be locked ({error.strerror}): move the home to a local file system"
        ) from error


def _say(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)
