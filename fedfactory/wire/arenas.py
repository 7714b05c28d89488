"""Memory of processes that move arrays with many threads."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

# glibc, malloc.h
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
_PIECE_LIKE_BYTES: Final = 512 * 1024


def limit_arenas() -> None:
    """Let glibc keep two arenas instead of eight a core, and give freed pieces back at once.

    gRPC's threads each fill an arena of their own, and what they free there stays: some 100 MB at
    a site's agent, more at the gateway. Called before threads start.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, _PIECE_LIKE_BYTES)
