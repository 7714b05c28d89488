"""A run's own process: `python -m fedfactory.coordinator.running.process FD SETTINGS PARENT`.

FD is its end of the link, SETTINGS what it is told (run_settings.py), PARENT the daemon's process
id, whose death it does not outlive. Linux only, like our sites.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Tie this process to its parent, then serve the run."""
    descriptor, settings, parent = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    # What a strategy prints, and Flower's console, would fill a disk: a run's log is run_log's. An
    # error that ends us is printed all the same.
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        from fedfactory.coordinator.run_settings import RunSettings
        from fedfactory.coordinator.running.serverapp import serve

        with socket.socket(fileno=descriptor) as daemon:
            serve(daemon, RunSettings.read(settings))


if __name__ == "__main__":
    main()
