"""One agent, or one coordinator, to a home: a lock on HOME/<program>.lock, held while it runs.

The kernel frees the lock when its holder ends, however it ends; what the file says (who, where,
since when) is for people. A home on a network file system needs one that has locks; a site's
ledger, always on a local disk, lets a second agent spend nothing in any case.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, ProtocolError

Program = Literal["agent", "coordinator"]
Mode = Literal["run", "tick"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a home; `since` is Unix seconds."""

    pid: int
    host: str
    since: float
    mode: Mode


class LeaseHeldError(EnvironmentFailedError):
    """Another one runs on this home."""

    def __init__(self, home: Path, program: Program, holder: Holder | None) -> None:
        self.holder = holder
        who = (
            f"process {holder.pid} on {holder.host} ({holder.mode}) since"
            f" {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
            if holder
            else "a process that has not said who it is"
        )
        super().__init__(f"another {program} runs on {home}: {who}; stop it first")


class Lease:
    """Held from creation to `close`.

    Raises:
        LeaseHeldError: another process holds it; says which.
        EnvironmentFailedError: the file cannot be written, or not be locked.
    """

    def __init__(self, home: Path, program: Program, mode: Mode) -> None:
        path = _file(home, program)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentFailedError(f"{path} cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise LeaseHeldError(home, program, _read(path)) from error
        except OSError as error:
            os.close(self._handle)
            raise EnvironmentFailedError(
                f"{path} cannot be locked ({error.strerror}): move the home to a file system that"
                " has locks (Lustre: mounted with -o flock)"
            ) from error
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), since=time.time(), mode=mode)
        self._write(to_json(holder))

    def close(self) -> None:
        """Let go."""
        self._write("")
        os.close(self._handle)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a full disk: the lock holds, and nobody can be told who has it
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def holder_of(home: Path, program: Program) -> Holder | None:
    """Return who holds a home now; None if nobody does. Takes nothing.

    A holder that has just begun may not have said who it is: then its process id is 0.
    """
    path = _file(home, program)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock for a moment: two who look at once do not take each other for a holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path) or Holder(pid=0, host="", since=path.stat().st_mtime, mode="run")
    finally:
        os.close(handle)
    return None


def _file(home: Path, program: Program) -> Path:
    return home / f"{program}.lock"


def _read(path: Path) -> Holder | None:
    try:
        return from_json(Holder, path.read_bytes())
    except (OSError, ProtocolError):
        return None
