"""Loaded by every Python process of one test: agents' heartbeats come later than SuperLink waits."""

from __future__ import annotations

import sys

if "site_agents.cli.main" in sys.orig_argv:
    import site_agents.session

    site_agents.session.HEARTBEAT_S = 43.0
