"""The examinations in the order in which a person mends what they find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedfactory.contracts.errors import FedfactoryError
from site_agents.config import load_agent_config
from site_agents.doctor.clock import examine_clock
from site_agents.doctor.finding import Finding, fail, ok
from site_agents.doctor.gpus import examine_gpus
from site_agents.doctor.house import (
    examine_books,
    examine_data,
    examine_disk,
    examine_home,
    examine_policy,
    examine_versions,
    examine_worker,
)
from site_agents.doctor.operators import examine_operators
from site_agents.doctor.private_work import examine_private_work
from site_agents.doctor.records import examine_records


def examine(home: Path) -> Iterator[Finding]:
    """Yield what is found at a site, one by one, as soon as it is known."""
    yield from examine_versions()
    try:
        config = load_agent_config(home, [])
    except FedfactoryError as error:
        yield fail("config", str(error), "mend agent.yaml, then ask again")
        return
    yield ok("config", f"site '{config.site}', gateway {config.gateway_address}")
    yield from examine_home(config)
    policy, found = examine_policy(config)
    yield from found
    yield from examine_operators(config, policy)
    yield from examine_disk(config, policy)
    yield from examine_books(config, policy)
    yield from examine_clock()
    from site_agents.doctor.way import examine_way

    yield from examine_way(config.gateway_address, config.home / "identity")
    yield from examine_gpus(config.worker.devices, config.worker.threads)
    yield from examine_worker(config)
    yield from examine_private_work(config, policy)
    yield from examine_data(config)
    yield from examine_records(config, policy)
