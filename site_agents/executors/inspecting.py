"""Has a source of the site's data read by a process that is isolated as its workers are."""

from __future__ import annotations

import os
import subprocess

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import DataError, EnvironmentFailedError, ProtocolError
from fedfactory.isolation.launching import isolated
from site_agents.config import AgentConfig
from site_agents.executors.environment import worker_environment
from site_agents.inspection import Found, Inspected, Inspection, Under


def inspect(
    config: AgentConfig,
    name: str,
    lineage: str,
    *,
    under: Under | None = None,
    overlaps: bool = False,
) -> Found:
    """Return what a source holds; see Inspection. The process's own words go to standard error.

    Raises:
        DataError: the source cannot be read. EnvironmentFailedError: the process failed.
    """
    asked = Inspection(
        home=str(config.home),
        name=name,
        options=config.data[name],
        lineage=lineage,
        under=under,
        overlaps=overlaps,
    )
    done = subprocess.run(
        [*isolated(config.worker.network, gpu=False), "site_agents.inspection"],
        env=worker_environment(os.environ, config.worker.threads),
        input=to_json(asked).encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        inspected = from_json(Inspected, done.stdout)
    except ProtocolError as error:
        raise EnvironmentFailedError(
            f"the process that reads data '{name}' ended with {done.returncode} and no answer"
        ) from error
    if inspected.found is None:
        raise DataError(inspected.problem)
    return inspected.found
