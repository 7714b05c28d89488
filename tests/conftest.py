"""Started in the background of a shell, SIGINT is ignored, and by whatever a test starts as well."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
