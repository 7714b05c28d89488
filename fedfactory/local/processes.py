"""Operating-system processes that local mode starts, and the certainty that they end.

Each child runs in a session of its own (Ctrl-C reaches only us) and watches its standard input: if
we die by any means the pipe closes and the child ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TERM_GRACE_S: Final = 5.0


@dataclass(slots=True)
class Child:
    """A child process: its name, its log, the process."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]


@dataclass(slots=True)
class Children:
    """All children of one local run."""

    environment: Mapping[str, str]
    _children: list[Child] = field(default_factory=list)

    def start(self, name: str, arguments: Sequence[str], log: Path) -> Child:
        """Start a child whose output goes to its log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(arguments),
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        child = Child(name, log, process)
        self._children.append(child)
        return child

    def dead(self) -> Child | None:
        """Return the first child that has ended, if any."""
        return next((c for c in self._children if c.process.poll() is not None), None)

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.name: child.process.pid for child in self._children}

    def stop(self) -> None:
        """End every child: ask, wait a little, then kill its whole session."""
        for child in reversed(self._children):
            if child.process.stdin is not None:
                with contextlib.suppress(OSError):
                    child.process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        end = time.monotonic() + TERM_GRACE_S
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.05, end - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        self._children.clear()
