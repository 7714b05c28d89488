"""Memory of processes that move arrays with many threads."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # glibc, malloc.h


def limit_arenas() -> None:
    """Let glibc keep two arenas instead of eight a core.

    gRPC's threads each fill one of their own, and what they free there stays: some 100 MB at a
    site's agent, more at the gateway. Called before threads start.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
