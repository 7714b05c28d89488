"""Becoming a member: by the invitation that lies in the home, or that a person brings later."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, IdentityError
from fedfactory.identity.enrolment import is_enrolled
from site_agents.backoff import Backoff
from site_agents.config import AgentConfig
from site_agents.enrolling import IDENTITY, enrol, pending
from site_agents.status import StatusBoard

log = logging.getLogger("site_agents.joining")

LOOK_S: Final = 1.0
NOT_ENROLLED: Final = (
    "not enrolled: ask the consortium for an invitation, then `site-agent enrol FILE`"
)


def join(config: AgentConfig, board: StatusBoard, stop: threading.Event, *, patient: bool) -> bool:
    """Wait until the home holds a certificate; False if `stop` was set before.

    An invitation that lies there is used at once, and again while the gateway is not up. Without
    `patient`, what stands in the way is raised instead.

    Raises:
        FedfactoryError: without `patient`: the site is not enrolled and cannot be now.
    """
    backoff, said = Backoff(), ""
    while not stop.is_set():
        try:
            if pending(config.home):
                enrol(config.home, address=config.gateway_address)
            if is_enrolled(config.home / IDENTITY):
                return True
            raise IdentityError(NOT_ENROLLED)
        except FedfactoryError as error:
            if not patient:
                raise
            if str(error) != said:
                log.warning("waits to be enrolled: %s", error)
            said = str(error)
            board.connection("not enrolled", said)
            if isinstance(error, EnvironmentFailedError):
                stop.wait(backoff.after_cut(0.0, random.random()))  # noqa: S311
            else:
                wait_for_another(config, stop, backoff.after_refusal(random.random()))  # noqa: S311
    return False


def wait_for_another(config: AgentConfig, stop: threading.Event, longest_s: float) -> None:
    """Wait until a person brought an invitation or a certificate, for `longest_s` at most."""
    before, end = _what_lies_there(config), time.monotonic() + longest_s
    while _what_lies_there(config) == before and time.monotonic() < end:
        if stop.wait(LOOK_S):
            return


def _what_lies_there(config: AgentConfig) -> frozenset[tuple[str, int, int]]:
    folder = config.home / IDENTITY
    try:
        found = [(path.name, path.stat()) for path in folder.iterdir()]
    except FileNotFoundError:  # none yet, or just being put in place
        return frozenset()
    return frozenset((name, stat.st_ino, stat.st_mtime_ns) for name, stat in found)
