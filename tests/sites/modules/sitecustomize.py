"""Loaded by every Python process of one test: an agent writes at its end what it had imported."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

if "site_agents.cli.main" in sys.orig_argv:
    atexit.register(lambda: Path(os.environ["MODULES"]).write_text("\n".join(sys.modules)))
