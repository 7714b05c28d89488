"""Whether this machine's clock is kept right, and how far it is from the gateway's."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from site_agents.doctor.finding import Finding, fail, ok, warn

AREA = "clock"
# Flower signs each call with the time and takes none older; an order's expiry is minutes away.
WORST_S = 30.0
NOTABLE_S = 2.0
_ERROR = 5  # TIME_ERROR of adjtimex(2)
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64-bit Linux; room to spare
SET_CLOCK = (
    "let a time service keep it: timedatectl set-ntp true, or ask the system's administrator"
)


def examine_clock() -> Iterator[Finding]:
    """Ask the kernel whether a time service keeps its clock."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        answer = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # mode 0: only reads
    except (OSError, AttributeError):
        return
    if answer == _ERROR:
        yield warn(AREA, "the kernel does not know of a time service that keeps it", SET_CLOCK)
    elif answer >= 0:
        yield ok(AREA, "kept by a time service")


def judge_skew(skew_s: float, doubt_s: float) -> Finding:
    """Judge how far this clock is ahead of the gateway's, give or take `doubt_s`. Pure."""
    text = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the gateway's"
    if abs(skew_s) - doubt_s > WORST_S:
        return fail(AREA, text, f"orders look expired and calls are refused: {SET_CLOCK}")
    if abs(skew_s) - doubt_s > NOTABLE_S:
        return warn(AREA, text, SET_CLOCK)
    return ok(AREA, f"within {max(abs(skew_s), doubt_s):.1f} s of the gateway's")
