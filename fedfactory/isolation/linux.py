"""The kernel's calls that Python 3.11 has no name for. Each raises OSError when the kernel refuses.

By ctypes, and without the module `socket`: whatever runs later in this process does not find it
imported.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

from fedfactory.isolation.filter_program import ARCHITECTURES, Architecture, Instruction

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_SET_MODE_FILTER: Final = 1
# TSYNC: for every thread. SPEC_ALLOW: without it, kernels before 5.16 slow a filtered process down
# by mitigations of speculative stores.
_FILTER_FLAGS: Final = 1 | 4
_CAPABILITY_VERSION: Final = 0x20080522
# Of every architecture.
_LANDLOCK_CREATE: Final = 444
_LANDLOCK_RESTRICT: Final = 446
_AF_INET: Final = 2
_SOCK_DGRAM_CLOEXEC: Final = 2 | 0o2000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_INTERFACE: Final = struct.Struct("16sh22x")  # struct ifreq

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def architecture() -> Architecture:
    """Return this machine's numbers.

    Raises:
        OSError: they are not known here.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise OSError(f"system calls of {machine} are not known; those of {known} are")
    return ARCHITECTURES[machine]


def unshare(flags: int) -> None:
    """Move this process, which has one thread, into namespaces of its own (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, flags: int) -> None:
    """Attach `source` at `target` in this mount namespace (mount(2))."""
    words = (os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None)
    _check(_libc.mount(*words), "mount")


def raise_loopback() -> None:
    """Bring the network namespace's own loopback up (netdevice(7))."""
    descriptor = _check(_libc.socket(_AF_INET, _SOCK_DGRAM_CLOEXEC, 0), "socket")
    try:
        request = ctypes.create_string_buffer(_INTERFACE.pack(b"lo", 0), _INTERFACE.size)
        _check(_libc.ioctl(descriptor, _SIOCGIFFLAGS, request), "SIOCGIFFLAGS")
        name, flags = _INTERFACE.unpack(request.raw)
        request.raw = _INTERFACE.pack(name, flags | _IFF_UP)
        _check(_libc.ioctl(descriptor, _SIOCSIFFLAGS, request), "SIOCSIFFLAGS")
    finally:
        os.close(descriptor)


def keep_capabilities(kept: int) -> None:
    """Give up every capability but those of the bit set `kept` (capset(2))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_libc.syscall(architecture().capset, header, data), "capset")


def install_filter(program: Sequence[Instruction]) -> None:
    """Put this process, and whatever it starts, under a seccomp filter for good (seccomp(2)).

    It gains no privileges any more, also not by a set-uid program.
    """
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    found = _Filter(length=len(program), instructions=packed)
    _check(
        _libc.syscall(
            *(architecture().seccomp, _SECCOMP_SET_MODE_FILTER, _FILTER_FLAGS),
            ctypes.byref(found),
        ),
        "seccomp",
    )


def landlock_version() -> int:
    """Return the ABI of the kernel's Landlock, 0 if it has none (landlock_create_ruleset(2))."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1)))


def create_landlock_ruleset(attributes: bytes) -> int:
    """Return the descriptor of a ruleset of the packed struct landlock_ruleset_attr."""
    size = ctypes.c_size_t(len(attributes))
    return _check(_libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")


def enter_landlock_ruleset(descriptor: int) -> None:
    """Restrict this process, and whatever it starts, for good (landlock_restrict_self(2))."""
    _check(_libc.syscall(_LANDLOCK_RESTRICT, descriptor, 0), "landlock_restrict_self")


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
