"""The seccomp filter of a worker, as instructions of classic BPF (linux/bpf_common.h). Pure.

A socket that does not exist reaches nothing, so the filter judges what socket(2) may make:

- In a network namespace of its own (`own_network`): IPv4, IPv6 and netlink, which see that
  namespace alone.
- Without one: none of these; connect and accept are denied as well, and the calls that would use
  another process of the same user as a proxy (ptrace, process_vm_readv, process_vm_writev,
  pidfd_getfd).
- Unix sockets never: a path name crosses network namespaces. The one exception, `gpu`: libcuda
  binds and listens at an abstract SEQPACKET socket (cuda-uvmfd-*) and fails without it.
- socketpair(2) makes Unix pairs of STREAM and SEQPACKET, which are connected for good. A pair of
  DGRAM can be sent to, and connected to, another address.

io_uring makes and connects sockets past any filter, and key requests make the kernel resolve names
(dns_resolver) outside of every namespace: both are denied. Another instruction set's calls have
other numbers: a process that makes one is killed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

AF_UNIX: Final = 1
OWN_NETWORK: Final = (2, 10, 16)  # AF_INET, AF_INET6, AF_NETLINK
SOCK_STREAM: Final = 1
SOCK_SEQPACKET: Final = 5
SOCK_TYPE_MASK: Final = 0xF  # the rest of `type` are flags: SOCK_CLOEXEC, SOCK_NONBLOCK

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_ABOVE: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data; arguments are little-endian words of 64 bits, of which the kernel
# reads the lower half, as it does for an int.
NUMBER_AT: Final = 0
ARCHITECTURE_AT: Final = 4
FIRST_ARGUMENT_AT: Final = 16
SECOND_ARGUMENT_AT: Final = 24


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    if_true: int
    if_false: int
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Numbers of one instruction set: its AUDIT_ARCH and those of its system calls.

    Of `foreign` ranges (first, last) every call is denied: those of a second ABI (x32).
    """

    audit: int
    seccomp: int
    capset: int
    socket: int
    socketpair: int
    denied: tuple[int, ...]
    denied_on_host_network: tuple[int, ...]
    foreign: tuple[tuple[int, int], ...] = ()


_KEYS_AND_RINGS_X86: Final = (248, 249, 250, 425, 426, 427)
_KEYS_AND_RINGS_ARM: Final = (217, 218, 219, 425, 426, 427)
# `denied`: add_key, request_key, keyctl, io_uring_setup, io_uring_enter, io_uring_register.
# `denied_on_host_network`: connect, accept, accept4, ptrace, process_vm_readv, process_vm_writev,
# pidfd_getfd. The kernel's arch/x86/entry/syscalls/syscall_64.tbl and uapi/asm-generic/unistd.h.
ARCHITECTURES: Final = {
    "x86_64": Architecture(
        audit=0xC000003E,
        seccomp=317,
        capset=126,
        socket=41,
        socketpair=53,
        denied=_KEYS_AND_RINGS_X86,
        denied_on_host_network=(42, 43, 288, 101, 310, 311, 438),
        foreign=((512, 547), (0x40000000, 0xFFFFFFFF)),
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        seccomp=277,
        capset=91,
        socket=198,
        socketpair=199,
        denied=_KEYS_AND_RINGS_ARM,
        denied_on_host_network=(203, 202, 242, 117, 270, 271, 438),
    ),
}

_ALLOW: Final = Instruction(RETURN, 0, 0, RET_ALLOW)
_DENY_CALL: Final = Instruction(RETURN, 0, 0, RET_ERRNO | errno.EPERM)
# What a kernel without that kind of socket says: libraries know it and try another kind.
_DENY_SOCKET: Final = Instruction(RETURN, 0, 0, RET_ERRNO | errno.EAFNOSUPPORT)


def filter_program(
    architecture: Architecture, *, own_network: bool, gpu: bool
) -> tuple[Instruction, ...]:
    """Return the filter of a worker; see the module's text for what it lets through."""
    denied = architecture.denied
    if not own_network:
        denied += architecture.denied_on_host_network
    return (
        Instruction(LOAD, 0, 0, ARCHITECTURE_AT),
        Instruction(JUMP_EQUAL, 1, 0, architecture.audit),
        Instruction(RETURN, 0, 0, RET_KILL_PROCESS),
        Instruction(LOAD, 0, 0, NUMBER_AT),
        *(one for first, last in architecture.foreign for one in _deny_range(first, last)),
        *(one for number in denied for one in _when(number, (_DENY_CALL,))),
        *_when(architecture.socket, _judge_socket(own_network=own_network, gpu=gpu)),
        *_when(architecture.socketpair, _judge_pair()),
        _ALLOW,
    )


def _when(value: int, then: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """Run `then`, which returns, if the accumulator is `value`; else go on behind it."""
    return (Instruction(JUMP_EQUAL, 0, len(then), value), *then)


def _deny_range(first: int, last: int) -> tuple[Instruction, ...]:
    return (
        Instruction(JUMP_AT_LEAST, 0, 2, first),
        Instruction(JUMP_ABOVE, 1, 0, last),
        _DENY_CALL,
    )


def _judge_socket(*, own_network: bool, gpu: bool) -> tuple[Instruction, ...]:
    families = OWN_NETWORK if own_network else ()
    return (
        Instruction(LOAD, 0, 0, FIRST_ARGUMENT_AT),
        *(one for family in families for one in _when(family, (_ALLOW,))),
        *(_when(AF_UNIX, _judge_type((SOCK_SEQPACKET,))) if gpu else ()),
        _DENY_SOCKET,
    )


def _judge_pair() -> tuple[Instruction, ...]:
    return (
        Instruction(LOAD, 0, 0, FIRST_ARGUMENT_AT),
        *_when(AF_UNIX, _judge_type((SOCK_STREAM, SOCK_SEQPACKET))),
        _DENY_SOCKET,
    )


def _judge_type(allowed: Iterable[int]) -> tuple[Instruction, ...]:
    return (
        Instruction(LOAD, 0, 0, SECOND_ARGUMENT_AT),
        Instruction(AND, 0, 0, SOCK_TYPE_MASK),
        *(one for kind in allowed for one in _when(kind, (_ALLOW,))),
        _DENY_SOCKET,
    )
