"""A run's own process: `python -m fedfactory.coordinator.running.process FD SETTINGS PARENT`.

FD is its end of the link, SETTINGS what it is told (run_settings.py), PARENT the daemon's process
id, whose death it does not outlive. Linux only, like our sites.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
STDERR: Final = 2


def main() -> None:
    """Tie this process to its parent, then serve the run."""
    descriptor, settings, parent = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    said = _silence_errors()
    try:
        from fedfactory.coordinator.run_settings import RunSettings
        from fedfactory.coordinator.running.serverapp import serve

        with socket.socket(fileno=descriptor) as daemon:
            daemon.set_inheritable(False)
            serve(daemon, RunSettings.read(settings))
    except BaseException:
        os.dup2(said, STDERR)
        raise


def _silence_errors() -> int:
    """Send standard error nowhere; return a descriptor of where it went.

    What a strategy, its native code and its children print, and Flower's console, would fill a
    disk: a run's log is run_log's. What ends us is printed all the same.
    """
    said = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    os.close(nowhere)
    faulthandler.enable(said)
    return said


if __name__ == "__main__":
    main()
