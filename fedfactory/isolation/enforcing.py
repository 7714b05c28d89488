"""Isolates this process by one mechanism, or finds out which ones the kernel permits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fedfactory.isolation.filter_program import filter_program
from fedfactory.isolation.landlock import enter_domain
from fedfactory.isolation.linux import architecture, install_filter, keep_capabilities
from fedfactory.isolation.mechanism import MECHANISMS, Mechanism
from fedfactory.isolation.namespaces import effective_capabilities, enter_namespaces

# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID: an agent of root reads
# the files that it read before. Without the others its worker can't trace it.
_OVER_FILES: Final = 0b11111
_REASON_BYTES: Final = 1024


def isolate(mechanism: Mechanism, *, gpu: bool) -> None:
    """Keep this process, and all that it starts, off the network for good.

    `gpu`: let it make the sockets that CUDA needs. It has one thread so far.

    Raises:
        OSError: the kernel refuses; the process is then in no state to go on.
    """
    if mechanism == "none":
        return
    own_network = mechanism == "namespaces"
    program = filter_program(architecture(), own_network=own_network, gpu=gpu)
    kept = effective_capabilities() & _OVER_FILES
    if own_network:
        enter_namespaces()
    keep_capabilities(kept)
    install_filter(program)
    enter_domain(own_network=own_network)


def find_refusals() -> dict[Mechanism, str]:
    """Return the mechanisms that the kernel refuses here, with its reasons.

    Each is tried by a process that ends with it.
    """
    tried = {mechanism: _try(mechanism) for mechanism in MECHANISMS}
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        # The process that tried it had one; unshare(2) would refuse this one.
        tried["namespaces"] = "a sitecustomize or .pth file of this Python has started a thread"
    return {mechanism: reason for mechanism, reason in tried.items() if reason}


def _try(mechanism: Mechanism) -> str:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolate(mechanism, gpu=False)
            os._exit(0)
        except OSError as error:
            os.write(writes, str(error.strerror or error).encode()[:_REASON_BYTES])
        finally:
            os._exit(1)
    os.close(writes)
    try:
        reason = os.read(reads, _REASON_BYTES).decode(errors="replace")
    finally:
        os.close(reads)
        _, status = os.waitpid(child, 0)
    return (reason or f"the process that tried it ended with status {status}") if status else ""
