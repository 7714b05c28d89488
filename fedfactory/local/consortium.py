"""A consortium on this machine for one run: founded, its coordinator and its sites' agents started.

All are the processes that a real one runs, with an authority of their own in a workspace.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from fedfactory.config import RunConfig
from fedfactory.contracts.errors import EnvironmentFailedError, RunStoppedError
from fedfactory.coordinator.membership.founding import make_consortium
from fedfactory.identity.operators import Operator, load_operator
from fedfactory.identity.roles import Role
from fedfactory.local.plan import (
    CONSORTIUM,
    OPERATOR,
    SOURCE,
    coordinator_settings,
    data_options,
    site_policy,
)
from fedfactory.local.processes import Children
from fedfactory.operator.client import OperatorClient
from fedfactory.report.reporter import Reporter
from site_agents.data.local_share import Share
from site_agents.setup import make_home

START_TIMEOUT_S: Final = 120.0
TICK_S: Final = 0.05
INVITATION_S: Final = 3600.0


class LocalConsortium:
    """What the lead and the sites' administrators do, in `workspace`; `children` are its processes.

    `logs` is where logs will lie for people; what is in `interrupted` ends every wait.
    """

    def __init__(
        self,
        config: RunConfig,
        shares: Mapping[str, Share],
        workspace: Path,
        *,
        logs: Path,
        reporter: Reporter,
        interrupted: Collection[int],
    ) -> None:
        self.home = workspace / "coordinator"
        self.children = Children(environment=_environment())
        self._config = config
        self._shares = shares
        self._workspace = workspace
        self._logs = logs
        self._reporter = reporter
        self._interrupted = interrupted

    def found(self) -> Operator:
        """Make an authority for this run alone, and start its coordinator."""
        make_consortium(
            self.home,
            name=CONSORTIUM,
            root_key=self._workspace / "root.key",
            passphrase=secrets.token_bytes(32),
            hosts=("localhost", "127.0.0.1"),
            gateway="127.0.0.1:0",
            operator=OPERATOR,
            operator_folder=self._workspace / "operator",
        )
        self.children.start(
            "coordinator",
            [
                *(sys.executable, "-m", "fedfactory.cli.main", "coordinator"),
                *("--home", str(self.home), "--until-stdin-closes"),
                *coordinator_settings(self._config),
            ],
            self.home / "logs" / "coordinator.log",
        )
        return load_operator(self._workspace / "operator")

    def gateway_address(self) -> str:
        """Wait until the gateway is there; return its address."""
        path = self.home / "gateway.json"
        self._wait_until(path.exists, "the gateway")
        return str(json.loads(path.read_text())["address"])

    def start_agents(self, client: OperatorClient) -> None:
        """Invite every site and start its agent, which enrols; wait until all are connected."""
        self._reporter.stage("starting the sites' agents")
        for site in self._config.sites:
            self._start_agent(client, site)
        self._reporter.stage("waiting for the sites")
        self._wait_until(lambda: self._are_connected(client), "the sites' agents")

    def _start_agent(self, client: OperatorClient, site: str) -> None:
        home = self._workspace / site
        invitation = client.invite(Role.SITE, site, INVITATION_S)
        make_home(
            home,
            site=site,
            gateway_address=invitation.gateway,
            data={SOURCE: data_options(self._config, site)},
            policy_text=site_policy(self._config, self._shares.get(site), invitation),
            worker={"executor": self._config.executor_name},
            invitation=invitation,
        )
        self.children.start(
            site,
            [
                *(sys.executable, "-m", "site_agents.cli.main", "run"),
                *("--home", str(home), "--until-stdin-closes"),
            ],
            home / "logs" / "agent.log",
        )

    def _are_connected(self, client: OperatorClient) -> bool:
        here = {member.name for member in client.members().members if member.connected}
        return here.issuperset(self._config.sites)

    def _wait_until(self, there: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not there():
            if dead := self.children.dead():
                raise EnvironmentFailedError(
                    f"{dead.name} ended with code {dead.process.returncode};"
                    f" see {self._logs / dead.name}"
                )
            self._reporter.tick()
            if self._interrupted:
                raise RunStoppedError("interrupted before the run began")
            if time.monotonic() > end:
                raise EnvironmentFailedError(f"waited {START_TIMEOUT_S:.0f} s for {what} in vain")
            time.sleep(TICK_S)


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
