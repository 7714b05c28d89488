"""Descriptors that processes of `multiprocessing` hand to each other, without a Unix socket.

PyTorch's tensors in shared memory travel so, from the processes of a DataLoader. Python sends the
descriptor by a Unix socket, which an isolated process can't make: its receiver would wait for ever.
Here the receiver opens the sender's file through /proc, then writes its number into a pipe of the
sender's, opened in the same way; the sender closes what was taken when it offers the next one.
"""

from __future__ import annotations

import fcntl
import os
import struct
from multiprocessing import context, reduction
from typing import Any, Final

_NUMBER: Final = struct.Struct("=i")
_plain_duplicate: Final = reduction.DupFd


def share_through_proc() -> None:
    """Let this process, and those that it forks, share files in this way.

    Sockets are not shared: the kernel opens none through /proc, and says ENXIO.
    """
    reduction.DupFd = _duplicate  # type: ignore[assignment]


class SharedFile:
    """A file of another process's; `detach` returns a descriptor of this one's."""

    def __init__(self, process: int, number: int, taken: int) -> None:
        self._place = (process, number, taken)

    def detach(self) -> int:
        """Open the file, once, with the sender's access.

        Raises:
            OSError: the sender has ended, or it is a socket.
        """
        process, number, taken = self._place
        path = f"/proc/{process}/fd/{number}"
        with open(f"/proc/{process}/fdinfo/{number}", encoding="utf-8") as facts:  # noqa: PTH123
            flags = next(int(line.split()[1], 8) for line in facts if line.startswith("flags:"))
        found = os.open(path, (flags & os.O_ACCMODE) | os.O_CLOEXEC)
        answer = os.open(f"/proc/{process}/fd/{taken}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(answer, _NUMBER.pack(number))
        finally:
            os.close(answer)
        return found


class _Offers:
    """What this process has offered; `taken` is the pipe by which receivers say so."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._said, self.taken = os.pipe()
        fcntl.fcntl(self._said, fcntl.F_SETFL, os.O_NONBLOCK)

    def add(self, descriptor: int) -> SharedFile:
        self._close_taken()
        return SharedFile(self.process, os.dup(descriptor), self.taken)

    def _close_taken(self) -> None:
        while True:
            try:
                said = os.read(self._said, _NUMBER.size * 1024)
            except BlockingIOError:
                return
            for (number,) in _NUMBER.iter_unpack(said):
                os.close(number)


_offers: list[_Offers] = []  # one, of this process; a fork makes its own


def _duplicate(descriptor: int) -> Any:
    if context.get_spawning_popen() is not None:  # handed over by the start of a process
        return _plain_duplicate(descriptor)
    if not _offers or _offers[0].process != os.getpid():
        _offers[:] = [_Offers()]
    return _offers[0].add(descriptor)
