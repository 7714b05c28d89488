"""The site's daemon: one outbound connection, orders in, answers out.

It sleeps until the gateway's doorbell rings, polls slowly in between, and reconnects with jittered
back-off. What an order means is decided in pipeline.py; this file only moves it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from typing import Final

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.identity.enrolment import (
    load_identity,
    load_node_key,
    request_identity,
    wait_for_certificate,
)
from fedfactory.identity.roles import Role
from fedfactory.wire.arenas import limit_arenas
from site_agents.audit import AuditChain
from site_agents.blob_cache import BlobCache
from site_agents.config import AgentConfig
from site_agents.executors.executor import Executor
from site_agents.executors.table import make_executor
from site_agents.flower_seam import HEARTBEAT_S, FleetNode, FleetUnavailableError
from site_agents.gateway_client import GatewayClient
from site_agents.ledger import WorkLedger
from site_agents.pipeline import Pipeline, Transfer

log = logging.getLogger("site_agents.agent")

POLL_S: Final = 30.0
CERTIFICATE_TIMEOUT_S: Final = 24 * 3600.0
FIRST_BACKOFF_S: Final = 0.1
BACKOFF_GROWTH: Final = 1.5
LONGEST_BACKOFF_S: Final = 30.0
ORPHAN_GRACE_S: Final = 5.0


class Agent:
    """One site's agent. `run` returns when `stop` was called."""

    def __init__(self, config: AgentConfig, executor: Executor) -> None:
        self._config = config
        self._executor = executor
        self._stop = threading.Event()
        self._rung = threading.Event()
        self._lost = threading.Event()

    def stop(self) -> None:
        """Finish the order under way, tell SuperLink, and return; safe from a signal handler."""
        self._stop.set()
        self._rung.set()

    def run(self) -> None:
        """Connect and serve until stopped."""
        home = self._config.home
        identity = home / "identity"
        request_identity(identity, Role.SITE, self._config.site, node_key=True)
        if not wait_for_certificate(identity, CERTIFICATE_TIMEOUT_S, self._stop):
            return
        gateway = GatewayClient(self._config.gateway_address, load_identity(identity))
        node = FleetNode(gateway.tunnel, load_node_key(identity))
        ledger = WorkLedger(home / "ledger.sqlite")
        audit = AuditChain(home / "audit.jsonl")
        pipeline = Pipeline(
            site=self._config.site,
            policy=self._config.policy,
            ledger=ledger,
            audit=audit,
            executor=self._executor,
            transfer=Transfer(
                fetch=BlobCache(home / "spool" / "models", gateway).fetch, send=gateway.upload
            ),
            spool=home / "spool" / "jobs",
            timeout_s=self._config.worker.timeout_s,
        )
        try:
            self._serve(gateway, node, pipeline)
        finally:
            node.close()
            gateway.close()
            audit.close()
            ledger.close()

    def _serve(self, gateway: GatewayClient, node: FleetNode, pipeline: Pipeline) -> None:
        backoff_s = FIRST_BACKOFF_S
        remembered = self._config.home / "node-id"
        if remembered.exists():
            node.resume(int(remembered.read_text()))
        while not self._stop.is_set():
            try:
                remembered.write_text(str(node.activate()))
                self._lost.clear()
                self._start(self._listen, gateway)
                self._start(self._beat, node)
                log.info("connected to %s", self._config.gateway_address)
                backoff_s = FIRST_BACKOFF_S
                self._answer_until_lost(node, pipeline)
            except FedfactoryError as error:
                log.warning("not connected: %s %s", error, error.diagnostic or "")
            self._lost.set()
            if not self._stop.is_set():
                # Jitter keeps the sites from coming back all at once.
                self._stop.wait(random.uniform(0.5, 1.0) * backoff_s)  # noqa: S311
                backoff_s = min(BACKOFF_GROWTH * backoff_s, LONGEST_BACKOFF_S)
        try:
            node.deactivate()
        except FedfactoryError:
            log.info("could not say goodbye: SuperLink is away")

    def _start(self, target: object, argument: object) -> None:
        assert callable(target)
        threading.Thread(target=target, args=(argument,), daemon=True).start()

    def _listen(self, gateway: GatewayClient) -> None:
        """Turn the gateway's rings into wake-ups; the end of the stream is the end of a session."""
        try:
            for _ in gateway.listen():
                self._rung.set()
        except FedfactoryError as error:
            log.warning("the doorbell fell silent: %s", error)
        self._lost.set()
        self._rung.set()

    def _beat(self, node: FleetNode) -> None:
        while not self._lost.wait(HEARTBEAT_S):
            try:
                if node.heartbeat():
                    continue
                log.warning("SuperLink no longer knows this node")
            except FleetUnavailableError as error:
                log.warning("heartbeat failed: %s", error.diagnostic)
            self._lost.set()
            self._rung.set()

    def _answer_until_lost(self, node: FleetNode, pipeline: Pipeline) -> None:
        while not (self._lost.is_set() or self._stop.is_set()):
            self._rung.clear()
            while (incoming := node.pull()) is not None and not self._stop.is_set():
                reply = pipeline.answer(incoming.text)
                if reply is not None:
                    node.answer(incoming, to_json(reply))
            self._rung.wait(POLL_S)


def run_agent(config: AgentConfig, *, until_stdin_closes: bool = False) -> int:
    """Run a site's agent until SIGTERM or SIGINT; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    (config.home / "logs").mkdir(parents=True, exist_ok=True)
    limit_arenas()
    executor = make_executor(config, log=config.home / "logs" / "worker.log")
    agent = Agent(config, executor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    if until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    executor.start()
    try:
        agent.run()
    finally:
        executor.close()
    return 0


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)
