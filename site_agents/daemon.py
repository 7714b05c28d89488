"""The process around an agent: its lease on the home, its books, signals, a word to systemd."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.lease import Lease, Mode
from fedfactory.systemd_notify import notify
from fedfactory.wire.arenas import limit_arenas
from site_agents.agent import Agent
from site_agents.assembly import build_executor, open_books
from site_agents.books import Books
from site_agents.config import POLICY_FILE, AgentConfig
from site_agents.executors.executor import Executor
from site_agents.executors.isolation import isolation_of
from site_agents.home_check import check_home
from site_agents.policy_file import load_policy

log = logging.getLogger("site_agents.daemon")

ORPHAN_GRACE_S: Final = 5.0
# A tick waits so long for orders: a coordinator sends them once it sees the site.
LINGER_S: Final = 5.0


def run_agent(config: AgentConfig, *, until_stdin_closes: bool = False) -> int:
    """Run a site's agent until SIGTERM or SIGINT, which let it finish; a second one does not.

    Returns the exit code.

    Raises:
        LeaseHeldError: another agent runs on this home.
        UsageError: somebody else could change the home, or read its keys.
        LedgerError, IntegrityError: the site's books do not hold.
        EnvironmentFailedError: its workers cannot be isolated as its configuration asks.
    """
    with _home(config, "run") as (executor, books):
        agent = Agent(config, executor, books)
        _obey_signals(agent)
        if until_stdin_closes:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        notify("READY=1")
        agent.run()
    return 0


def tick(config: AgentConfig) -> int:
    """Take the orders there are, work, answer, and return the exit code.

    Raises:
        What run_agent raises; FedfactoryError: the site is not enrolled, or refused, or the gateway
            is away.
    """
    with _home(config, "tick") as (executor, books):
        agent = Agent(config, executor, books, linger_s=LINGER_S)
        _obey_signals(agent)
        agent.run()
    return 0


@contextmanager
def _home(config: AgentConfig, mode: Mode) -> Iterator[tuple[Executor, Books]]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    limit_arenas()
    check_home(config)
    with Lease(config.home, "agent", mode):
        _say_isolation(config)
        _say_policy(config)
        executor = build_executor(config)
        if mode == "run":
            executor.start()  # in a tick, when there is work
        try:
            books = open_books(config)
            try:
                yield executor, books
            finally:
                # Work that a second signal cut short ends here, before the books are closed.
                executor.close()
                books.close()
        finally:
            executor.close()


def _say_policy(config: AgentConfig) -> None:
    """Write into the log, before any order finds out, that the policy lets no work be taken."""
    try:
        load_policy(config.home / POLICY_FILE)
    except FedfactoryError as error:
        log.warning("no work is taken until the policy holds: %s", error)


def _say_isolation(config: AgentConfig) -> None:
    """Write into the log how workers are kept off the network.

    Raises:
        EnvironmentFailedError: worker.network is isolated, which this machine does not permit.
    """
    found = isolation_of(config.worker.network)
    level = logging.WARNING if found.mechanism == "none" else logging.INFO
    log.log(level, "the workers' network is %s", found.sentence)


def _obey_signals(agent: Agent) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_on_signal, agent))


def _on_signal(agent: Agent, number: int, frame: FrameType | None) -> None:
    del frame
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, lambda *_: agent.stop())
    log.info("%s: finishing the orders under way; again to stop", signal.Signals(number).name)
    agent.drain()


def _end_with_stdin() -> None:
    # Not sys.stdin: a thread that waits in it, when the agent ends first, upsets the interpreter.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)
