"""Loaded by every Python process of one test: an agent's clock goes wrong by what `ahead_s` says.

The file lies beside this one; without it the clock is right. gRPC's own deadlines are kept right:
its C core asks the system, and a clock that jumps does so for both.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

OURS = ("/site_agents/", "/fedfactory/")

if "site_agents.cli.main" in sys.orig_argv:
    AHEAD = Path(__file__).with_name("ahead_s")
    right_time = time.time

    def wrong_time() -> float:
        asked_by = sys._getframe(1).f_code.co_filename
        try:
            ahead_s = float(AHEAD.read_text()) if any(part in asked_by for part in OURS) else 0.0
        except OSError:
            ahead_s = 0.0
        return right_time() + ahead_s

    time.time = wrong_time
