"""A user, a network and a mount namespace of a process's own (namespaces(7)).

Ids stay what they are, so that the kernel judges access to files, devices and network file systems
as before, by the same user, group and supplementary groups. An ordinary process may map its own
user and group alone; one of root maps all that it sees, and keeps its capabilities over files.

A process in a user namespace of its own cannot trace those outside of it, nor read their memory,
descriptors or folders through /proc: the same user's agent is no proxy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedfactory.isolation.linux import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    mount,
    raise_loopback,
    unshare,
)

_CAP_SETGID: Final = 6
_CAP_SETUID: Final = 7
# Hardware that talks to other machines past sockets and network namespaces: InfiniBand and RoCE,
# Slingshot, Omni-Path, the hypervisor's channels.
_DEVICES: Final = Path("/dev")
NETWORK_DEVICES: Final = (*("infiniband/*", "cxi*", "hfi1*", "vsock", "vhost-*", "net/tun"),)
_SEQPACKET: Final = "0005"  # of /proc/net/unix


def enter_namespaces() -> None:
    """Move this process there: own loopback up, network devices hidden.

    It has one thread. Its capabilities, which are those over the namespaces now, are not dropped
    yet.

    Raises:
        OSError: the kernel, or a security module, refuses, perhaps half-way.
    """
    hidden = [*_network_devices(), *_packet_sockets()]
    with _mapper(_maps(effective_capabilities())):
        unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
    raise_loopback()
    mount("none", "/", MS_REC | MS_SLAVE)
    for path in hidden:
        with suppress(FileNotFoundError, PermissionError):  # gone, or out of this process's reach
            mount("/dev/null", path, MS_BIND)


@contextmanager
def _mapper(maps: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Write this process's `maps`, pairs of file and text, after the body has unshared.

    By a process that stays outside, as the kernel demands of one that maps more than its own id.
    """
    process = os.getpid()
    waits, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        os._exit(_write_maps(process, maps) if os.read(waits, 1) else 0)
    try:
        yield
        os.write(go, b"\n")
    finally:
        os.close(waits)
        os.close(go)
        _, status = os.waitpid(mapper, 0)
    if number := os.waitstatus_to_exitcode(status):
        raise OSError(number, f"mapping of ids: {os.strerror(number)}")


def _write_maps(process: int, maps: Sequence[tuple[str, str]]) -> int:
    """Return 0, or the number of the error, which an exit code has room for."""
    try:
        for name, text in maps:
            descriptor = os.open(f"/proc/{process}/{name}", os.O_WRONLY)
            os.write(descriptor, text.encode())  # in one piece, as the kernel demands
            os.close(descriptor)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _maps(capabilities: int) -> tuple[tuple[str, str], ...]:
    if capabilities >> _CAP_SETUID & 1 and capabilities >> _CAP_SETGID & 1:
        users, groups = _all_ids("uid_map"), _all_ids("gid_map")
    else:
        users, groups = f"{os.geteuid()} {os.geteuid()} 1", f"{os.getegid()} {os.getegid()} 1"
    # Without setgroups a process cannot leave a group either, which some folders are closed to.
    return (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups))


def _all_ids(name: str) -> str:
    """Return a map of every id that there is in this process's own namespace, each to itself."""
    found = []
    for line in Path(f"/proc/self/{name}").read_text(encoding="utf-8").splitlines():
        first, _, count = line.split()
        found.append(f"{first} {first} {count}\n")
    return "".join(found)


def effective_capabilities() -> int:
    """Return this process's effective capabilities, a bit set (capabilities(7))."""
    for line in (
        Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _network_devices() -> Iterator[str]:
    return (str(path) for pattern in NETWORK_DEVICES for path in _DEVICES.glob(pattern))


def _packet_sockets() -> Iterator[str]:
    """Yield the path names at which SEQPACKET sockets listen: those a GPU's worker can make."""
    listing = Path("/proc/net/unix")
    with listing.open(encoding="utf-8", errors="surrogateescape") as sockets:
        for line in sockets:
            words = line.split(maxsplit=7)
            if len(words) == 8 and words[4] == _SEQPACKET and words[7].startswith("/"):
                path = words[7].rstrip("\n")
                with suppress(OSError):
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        yield path
