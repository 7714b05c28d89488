"""Processes of one test's federation, whoever else's run on this machine.

They are known by a token in their environment, the folder of the federation, and by descent: a
descendant counts also when its own environment is cut down or unreadable.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.patience import until

# A worker's environment keeps LC_*, so it is inherited by every process of a federation.
TOKEN = "LC_FEDFACTORY_TEST_FOLDER"


def token(folder: Path) -> dict[str, str]:
    """Return the variable to start a federation's first processes with."""
    return {TOKEN: str(folder)}


def owned(folder: Path) -> list[psutil.Process]:
    """Return the living processes of the federation in this folder."""
    everyone = list(psutil.process_iter(["environ", "ppid", "status"]))
    found = {p.pid for p in everyone if (p.info["environ"] or {}).get(TOKEN) == str(folder)}
    while more := {p.pid for p in everyone if p.info["ppid"] in found} - found:
        found |= more
    return [p for p in everyone if p.pid in found and p.info["status"] != psutil.STATUS_ZOMBIE]


def command(process: psutil.Process) -> str:
    """Return a process's command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def find(processes: Iterable[psutil.Process], *words: str) -> list[psutil.Process]:
    """Return those whose command line has all of these words."""
    return [p for p in processes if all(word in command(p) for word in words)]


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie has, although its parent has not waited for it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def runs(pid: int) -> bool:
    """Whether a process of this id has not ended."""
    try:
        return lives(psutil.Process(pid))
    except psutil.Error:
        return False


def end_left(folder: Path, seconds: float = 10) -> list[str]:
    """Return the commands of those that do not end by themselves within `seconds`; kill them."""
    with suppress(AssertionError):
        until(lambda: not owned(folder), seconds)
    left = owned(folder)
    commands = [command(process) or f"process {process.pid}" for process in left]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    return commands
