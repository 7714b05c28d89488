"""The executors there are. A new one is one file and one line here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fedfactory.contracts.plugins import PluginTable
from site_agents.config import AgentConfig
from site_agents.executors.executor import Executor
from site_agents.jobs.settings import SourceOptions

EXECUTORS: Final = PluginTable(
    kind="executor",
    group="fedfactory.executors",
    own={"local": "site_agents.executors.local:LocalExecutor"},
)


def make_executor(
    config: AgentConfig, sources: Callable[[], Mapping[str, SourceOptions]], *, log: Path
) -> Executor:
    """Return the executor that a site's configuration names; `log` is its processes' log file.

    `sources` returns what data the site has now; it is asked whenever work begins.
    """
    executor: Executor = EXECUTORS.load(config.worker.executor)(
        site=config.site,
        sources=sources,
        threads=config.worker.threads,
        devices=config.worker.devices,
        log=log,
        network=config.worker.network,
    )
    return executor
