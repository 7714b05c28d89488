"""The seccomp filter, judged call by call by an interpreter of its instructions, on both machines.

What a kernel does with it on this machine is tests/contract/test_isolation.py's.
"""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.isolation.filter_program import (
    AND,
    ARCHITECTURES,
    JUMP_ABOVE,
    JUMP_AT_LEAST,
    JUMP_EQUAL,
    LOAD,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    RETURN,
    filter_program,
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
FLAGS = 0o2000000 | 0o4000  # SOCK_CLOEXEC | SOCK_NONBLOCK
NO_SOCKET = RET_ERRNO | errno.EAFNOSUPPORT
NO_CALL = RET_ERRNO | errno.EPERM
machines = pytest.mark.parametrize("machine", list(ARCHITECTURES))
networks = pytest.mark.parametrize("own_network", [True, False])
# Of the kernel's tables: connect, accept, accept4, ptrace, process_vm_readv and _writev,
# pidfd_getfd; add_key, request_key, keyctl, io_uring_setup, _enter, _register.
HOST_CALLS = {
    "x86_64": (42, 43, 288, 101, 310, 311, 438),
    "aarch64": (203, 202, 242, 117, 270, 271, 438),
}
NEVER = {"x86_64": (248, 249, 250, 425, 426, 427), "aarch64": (217, 218, 219, 425, 426, 427)}


def judge(machine: str, number: int, *arguments: int, own_network: bool, gpu: bool = False) -> int:
    """Return the filter's verdict of a call, as the kernel comes to it."""
    one = ARCHITECTURES[machine]
    return run(filter_program(one, own_network=own_network, gpu=gpu), one.audit, number, arguments)


def run(program, audit: int, number: int, arguments) -> int:
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, audit, 0, *padded)
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == RETURN:
            return k
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == AND:
            accumulator &= k
        elif code == JUMP_EQUAL:
            at += if_true if accumulator == k else if_false
        elif code == JUMP_ABOVE:
            at += if_true if accumulator > k else if_false
        else:
            assert code == JUMP_AT_LEAST
            at += if_true if accumulator >= k else if_false


@machines
def test_own_network_has_its_three_families(machine: str) -> None:
    call = ARCHITECTURES[machine].socket
    for family in range(64):
        found = judge(machine, call, family, STREAM | FLAGS, own_network=True)
        allowed = family in (AF_INET, AF_INET6, AF_NETLINK)
        assert found == (RET_ALLOW if allowed else NO_SOCKET), family


@machines
def test_without_it_no_socket_is_made(machine: str) -> None:
    call = ARCHITECTURES[machine].socket
    for family in range(64):
        for kind in (STREAM, DGRAM, RAW, SEQPACKET):
            assert judge(machine, call, family, kind, own_network=False) == NO_SOCKET


@machines
@networks
def test_a_gpu_has_unix_seqpacket_sockets_more(machine: str, *, own_network: bool) -> None:
    call = ARCHITECTURES[machine].socket
    for kind in range(16):
        found = judge(machine, call, AF_UNIX, kind | FLAGS, own_network=own_network, gpu=True)
        assert found == (RET_ALLOW if kind == SEQPACKET else NO_SOCKET)


@machines
@networks
def test_a_pair_is_of_unix_and_connected_for_good(machine: str, *, own_network: bool) -> None:
    call = ARCHITECTURES[machine].socketpair
    for family in range(64):
        for kind in range(16):
            found = judge(machine, call, family, kind | FLAGS, own_network=own_network)
            allowed = family == AF_UNIX and kind in (STREAM, SEQPACKET)
            assert found == (RET_ALLOW if allowed else NO_SOCKET)


@machines
@networks
def test_the_upper_half_of_an_argument_is_not_looked_at(machine: str, *, own_network: bool) -> None:
    """The kernel takes an int: a family of 1 with bits above is AF_UNIX all the same."""
    call = ARCHITECTURES[machine].socket
    high = 1 << 32
    found = judge(machine, call, high | AF_UNIX, high | STREAM, own_network=own_network)
    assert found == NO_SOCKET


@machines
@networks
def test_other_ways_out_are_denied(machine: str, *, own_network: bool) -> None:
    for number in NEVER[machine]:
        assert judge(machine, number, own_network=own_network) == NO_CALL
    for number in HOST_CALLS[machine]:
        expected = RET_ALLOW if own_network else NO_CALL
        assert judge(machine, number, own_network=own_network) == expected


@machines
@networks
def test_another_instruction_set_kills(machine: str, *, own_network: bool) -> None:
    one = ARCHITECTURES[machine]
    program = filter_program(one, own_network=own_network, gpu=False)
    for audit in (0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, 0):  # i386, ARM, ours
        found = run(program, audit, 1, ())
        assert found == (RET_ALLOW if audit == one.audit else RET_KILL_PROCESS)


@networks
def test_x32_is_denied(*, own_network: bool) -> None:
    for number in (512, 521, 547, 0x40000000, 0x40000029, 0xFFFFFFFF):
        assert judge("x86_64", number, own_network=own_network) == NO_CALL
    for number in (511, 548):
        assert judge("x86_64", number, own_network=own_network) == RET_ALLOW


@given(
    st.sampled_from(sorted(ARCHITECTURES)), st.integers(0, 2**32 - 1), st.booleans(), st.booleans()
)
def test_every_call_gets_a_verdict(machine: str, number: int, own_network: bool, gpu: bool) -> None:
    found = judge(machine, number, AF_INET, STREAM, own_network=own_network, gpu=gpu)
    assert found in (RET_ALLOW, NO_CALL, NO_SOCKET)
