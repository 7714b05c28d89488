"""Every test works in its own folder, in an environment that is not the user's.

Started in the background of a shell, SIGINT is ignored, and by whatever a test starts as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from tests import isolation

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BASE = isolation.enter_session()
set_hypothesis_home_dir(Path(__file__).parents[1] / ".hypothesis")  # not in the working folder
# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "patient",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


def pytest_sessionstart() -> None:
    os.chdir(BASE)  # pytest has resolved the paths of its command line


def pytest_unconfigure() -> None:
    isolation.leave_session(BASE)


@pytest.fixture(autouse=True)
def own_place() -> Iterator[Path]:
    """Return the test's own empty working folder."""
    with isolation.own_place(BASE) as work:
        yield work
