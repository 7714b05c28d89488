"""What local mode tells its daemons, worked out from the run's configuration. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.config import RunConfig
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.run_plan import MAX_ROUNDS
from fedfactory.local.baselines import Request
from fedfactory.operator.submission import LONGEST_RUN_S, check_choices
from fedfactory.privacy.delta import delta_fault
from fedfactory.tasks.table import check_task
from fedfactory.wire.membership import Invitation
from site_agents.data.local_share import Share
from site_agents.policy import (
    AcknowledgedRisk,
    DataRule,
    OneOf,
    OperatorPin,
    TaskRule,
    WithoutDp,
    policy_text,
)

CONSORTIUM: Final = "local"
OPERATOR: Final = "operator"
SOURCE: Final = "share"
ANY_EPSILON: Final = 1e6  # with a noise of the run's own choosing, its epsilon is what it comes to
UNUSED_DELTA: Final = 1e-5
MOST_BYTES: Final = 1 << 40
NO_END: Final = "9999-12-31"  # the authority itself ends with the run
ACKNOWLEDGED: Final = WithoutDp(
    acknowledged_risk=AcknowledgedRisk(
        by="whoever started this run",
        on="2026-01-01",
        reason="local mode: all sites are on this machine and belong to one person",
    ),
    min_examples=1,
    min_local_steps=1,
)


def coordinator_settings(config: RunConfig) -> list[str]:
    """Return what local mode's coordinator is told beside its file: any free port, any strategy.

    Whoever starts a run here runs their own code anyway; a consortium's coordinator does not.
    """
    return [
        "listen=127.0.0.1:0",
        "strategy_classes=any",
        f"max_rounds={MAX_ROUNDS}",
        f"max_sites={len(config.sites)}",
    ]


def data_options(config: RunConfig, site: str) -> dict[str, Any]:
    """Return the data source of one local site: its share of one data set, by seed."""
    partition = config.partition
    return {
        "kind": "partition",
        "task": config.task_name,
        "path": str(config.task_data.resolve()) if config.task_data else None,
        "partition": {
            "kind": partition.kind,
            "alpha": partition.alpha,
            "labels_per_site": partition.labels_per_site,
        },
        "sites": sorted(config.sites),
        "site": site,
        "seed": config.seed,
    }


def check_shares(config: RunConfig) -> Mapping[str, Share]:
    """Check the run's choices and every site's share before anything starts.

    Returns each site's share; none for a task that reads no data.

    Raises:
        UsageError: a parameter outside the task's schema; data that is missing, unreadable or
            too small for the split; privacy that the task, or local mode, cannot keep.
    """
    from site_agents.data.local_share import describe_shares

    check_choices(config)
    task = check_task(config.task_name, config.task_parameters)
    reads_data = task.data_schema(config.task_parameters) is not None
    if config.baselines and not reads_data:
        raise UsageError(f"baselines=true: task '{task.name}' learns nothing to compare with")
    if config.privacy is not None and config.task_data is not None:
        raise UsageError(
            "privacy=dp_sgd with task.data: local mode's ledgers end with the run, so they may"
            " serve bundled or generated data only; real data is a site's, under its own agent"
        )
    if not reads_data:
        return {}
    options = data_options(config, config.sites[0])
    shares = describe_shares(options, task, config.task_parameters)
    delta = config.privacy.delta if config.privacy else 0.0
    for share in shares:
        size = f"{share.units} records of site '{share.site}'"
        if fault := delta_fault(delta, share.units, size=size):
            raise UsageError(f"privacy.delta: {fault}; choose one well below")
    return {share.site: share for share in shares}


def site_policy(config: RunConfig, share: Share | None, invitation: Invitation) -> str:
    """Return the policy of one local site; it pins the keys that its invitation names.

    It is what this run needs and no more: the public size is the site's share, which local mode
    made itself, and the caps are the run's own.
    """
    privacy = config.privacy
    epsilon = (privacy.target_epsilon if privacy else None) or ANY_EPSILON
    task = check_task(config.task_name, config.task_parameters)
    schema = task.data_schema(config.task_parameters)
    return policy_text(
        coordinators={invitation.consortium: invitation.coordinator_key},
        operators={
            name: OperatorPin(key=key, until=NO_END, confirmed=None)
            for name, key in invitation.operator_keys.items()
        },
        data={
            SOURCE: DataRule(
                lineage=SOURCE,
                public_size=share.units if share else 1,
                unit="row" if schema is None or schema.windows is None else "unit",
            )
        },
        tasks={
            config.task_name: TaskRule(
                source=SOURCE,
                parameters={
                    name: OneOf((config.task_parameters[name],)) for name in task.data_parameters
                },
            )
        },
        without_dp=None if privacy else ACKNOWLEDGED,
        epsilon_per_run=epsilon,
        epsilon_per_lineage=epsilon,
        delta=privacy.delta if privacy else UNUSED_DELTA,
        max_evaluations=config.rounds + 1,
        training={},
        max_base_abs={},
        metrics=dict.fromkeys(task.metrics, 0.0),
        rounds=config.rounds,
        gpu_hours_per_run=LONGEST_RUN_S,
        max_model_bytes=MOST_BYTES,
    )


def baselines_request(config: RunConfig, final: Path) -> Request:
    """Return what the baselines job needs; `final` is the run's model file."""
    return Request(
        task=config.task_name,
        task_parameters=config.task_parameters,
        data={site: data_options(config, site) for site in sorted(config.sites)},
        training=config.training,
        privacy=config.privacy,
        rounds=config.rounds,
        seed=config.seed,
        final=str(final),
    )
