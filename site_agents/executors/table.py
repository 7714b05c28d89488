"""The executors there are. A new one is one file and one line here, or an entry point elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedfactory.contracts.plugins import PluginTable
from site_agents.config import AgentConfig
from site_agents.executors.executor import Executor

EXECUTORS: Final = PluginTable(
    kind="executor",
    group="fedfactory.executors",
    own={"local": "site_agents.executors.warm_worker:WarmWorker"},
)


def make_executor(config: AgentConfig, *, log: Path) -> Executor:
    """Return the executor that a site's configuration names; `log` is its processes' log file."""
    executor: Executor = EXECUTORS.load(config.worker.executor)(
        site=config.site,
        data=config.data,
        threads=config.worker.threads,
        device=config.worker.device,
        log=log,
    )
    return executor
