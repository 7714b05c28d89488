"""What local mode tells its daemons, worked out from the run's configuration. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfactory.config import RunConfig
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.settings import RunSettings
from fedfactory.coordinator.strategy_loading import CUSTOM
from fedfactory.rounds.events import RunPlan
from fedfactory.tasks.table import check_task
from strategies import make_strategy

COORDINATOR = "local"
START_TIMEOUT_S = 60.0


def run_plan(
    config: RunConfig, *, run_id: str, folder: Path, initial: BlobRef, initial_file: Path
) -> RunSettings:
    """Return the settings of the run for coordinator and ServerApp."""
    return RunSettings(
        plan=RunPlan(
            run_id=run_id,
            task=config.task_name,
            strategy=config.strategy_name,
            seed=config.seed,
            rounds=config.rounds,
            sites=tuple(sorted(config.sites)),
            quorum=config.round.quorum,
            deadline_s=config.round.deadline_s,
            evaluate=config.evaluate,
        ),
        coordinator=COORDINATOR,
        task_parameters=config.task_parameters,
        training=config.training,
        privacy=config.privacy_mode,
        strategy_options=config.strategy_options,
        initial=initial,
        initial_file=str(initial_file),
        run_folder=str(folder),
        start_timeout_s=START_TIMEOUT_S,
    )


def data_options(config: RunConfig) -> dict[str, Any]:
    """Return the data source of every local site: its share of one data set, by seed."""
    partition = config.partition
    return {
        "source": "partition",
        "task": config.task_name,
        "path": str(config.task_data.resolve()) if config.task_data else None,
        "partition": {
            "kind": partition.kind,
            "alpha": partition.alpha,
            "labels_per_site": partition.labels_per_site,
        },
        "sites": sorted(config.sites),
        "seed": config.seed,
    }


def check_choices(config: RunConfig) -> None:
    """Check strategy, task parameters and every site's share before anything starts.

    Raises:
        UsageError: a parameter outside the task's schema; data that is missing, unreadable or
            too small for the split.
    """
    from site_agents.data.sources import describe_shares

    _check_strategy(config.strategy_name, config.strategy_options)
    task = check_task(config.task_name, config.task_parameters)
    if task.data is None and config.baselines:
        raise UsageError(f"baselines=true: task '{task.name}' learns nothing to compare with")
    if task.data is not None:
        describe_shares(data_options(config))


def _check_strategy(name: str, options: Mapping[str, Any]) -> None:
    if name == CUSTOM:
        from fedfactory.coordinator.flower_loading import load_flower_strategy

        load_flower_strategy(options)
    else:
        make_strategy(name, options)


def agent_overrides(config: RunConfig, site: str, home: Path, address: str) -> list[str]:
    """Return the command-line overrides of one site's agent."""
    data = data_options(config)
    shares = data.pop("partition")
    return [
        f"site={site}",
        f"home='{home}'",
        f"gateway.address='{address}'",
        *(f"data.{key}={json.dumps(value)}" for key, value in data.items()),
        *(f"data.partition.{key}={json.dumps(value)}" for key, value in shares.items()),
    ]


def baselines_request(config: RunConfig) -> Mapping[str, Any]:
    """Return what the baselines job needs: data, task, and the federation's total of local work."""
    training = config.training
    return {
        "task": config.task_name,
        "task_parameters": dict(config.task_parameters),
        "data": data_options(config),
        "training": {
            "local_epochs": training.local_epochs,
            "batch_size": training.batch_size,
            "lr": training.lr,
            "momentum": training.momentum,
            "proximal_mu": 0.0,
            "max_steps": training.max_steps,
        },
        "rounds": config.rounds,
        "seed": config.seed,
    }
