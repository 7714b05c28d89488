"""What local mode tells its daemons, worked out from the run's configuration. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.config import RunConfig
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import RunTerms, SignedPlan
from fedfactory.coordinator.settings import RunSettings
from fedfactory.coordinator.strategy_loading import CUSTOM
from fedfactory.identity.enrolment import TLS_KEY
from fedfactory.local.baselines import Request
from fedfactory.rounds.events import RunPlan
from fedfactory.tasks.table import check_task
from site_agents.data.local_share import Share
from site_agents.policy import (
    AcknowledgedRisk,
    DataRule,
    OneOf,
    TaskRule,
    WithoutDp,
    policy_text,
)
from strategies import make_strategy

COORDINATOR: Final = "local"
OPERATOR: Final = "operator"
SOURCE: Final = "share"
START_TIMEOUT_S: Final = 60.0
LONGEST_RUN_S: Final = 30 * 24 * 3600.0
INITIAL: Final = "initial.safetensors"
ANY_EPSILON: Final = 1e6  # with a noise of the run's own choosing, its epsilon is what it comes to
UNUSED_DELTA: Final = 1e-5
MOST_BYTES: Final = 1 << 40
ACKNOWLEDGED: Final = WithoutDp(
    acknowledged_risk=AcknowledgedRisk(
        by="whoever started this run",
        on="2026-01-01",
        reason="local mode: all sites are on this machine and belong to one person",
    ),
    min_examples=1,
    min_local_steps=1,
)
MODEL_ROOM: Final = (
    1.5  # a strategy may send a site a base with tensors of its own beside the model
)


def run_settings(
    config: RunConfig, *, signed: SignedPlan, home: Path, folder: Path, initial: BlobRef
) -> RunSettings:
    """Return the settings of the run for the coordinator at `home` and its ServerApp."""
    return RunSettings(
        plan=RunPlan(
            run_id=signed.terms.run_id,
            task=config.task_name,
            strategy=config.strategy_name,
            seed=config.seed,
            rounds=config.rounds,
            sites=tuple(sorted(config.sites)),
            quorum=config.round.quorum,
            deadline_s=config.round.deadline_s,
            evaluate=config.evaluate,
            privacy=config.privacy,
        ),
        signed=signed,
        signing_key=str(home / "identity" / TLS_KEY),
        anchors=str(home / "anchors"),
        strategy_options=config.strategy_options,
        initial=initial,
        initial_file=str(home / INITIAL),
        run_folder=str(folder),
        start_timeout_s=START_TIMEOUT_S,
    )


def run_terms(
    config: RunConfig, *, run_id: str, initial: BlobRef, nonce: str, now: float
) -> RunTerms:
    """Return what the operator signs: all that this run may ask. `now` is Unix seconds."""
    phases = 2 * config.rounds + 2
    return RunTerms(
        coordinator=COORDINATOR,
        run_id=run_id,
        sites=tuple(sorted(config.sites)),
        task=config.task_name,
        task_parameters=config.task_parameters,
        training=config.training,
        rounds=config.rounds,
        evaluate=config.evaluate,
        privacy=config.privacy,
        max_model_bytes=int(MODEL_ROOM * initial.bytes),
        max_update_norm_l2=config.max_update_norm_l2,
        nonce=nonce,
        not_after=now + min(LONGEST_RUN_S, START_TIMEOUT_S + phases * config.round.deadline_s),
    )


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


def check_choices(config: RunConfig) -> Mapping[str, Share]:
    """Check strategy, task parameters and every site's share before anything starts.

    Returns each site's share; none for a task that reads no data.

    Raises:
        UsageError: a parameter outside the task's schema; data that is missing, unreadable or
            too small for the split; privacy that the task, or local mode, cannot keep.
    """
    from site_agents.data.local_share import describe_shares

    _check_strategy(config.strategy_name, config.strategy_options)
    task = check_task(config.task_name, config.task_parameters)
    reads_data = task.schema(config.task_parameters) is not None
    if config.baselines and not reads_data:
        raise UsageError(f"baselines=true: task '{task.name}' learns nothing to compare with")
    if config.privacy is not None:
        if obstacle := task.private_obstacle(config.task_parameters):
            raise UsageError(f"privacy=dp_sgd: {obstacle}")
        if config.task_data is not None:
            raise UsageError(
                "privacy=dp_sgd with task.data: local mode's ledgers end with the run, so they may"
                " serve bundled or generated data only; real data is a site's, under its own agent"
            )
    if not reads_data:
        return {}
    options = data_options(config, config.sites[0])
    return {share.site: share for share in describe_shares(options, task, config.task_parameters)}


def _check_strategy(name: str, options: Mapping[str, Any]) -> None:
    if name == CUSTOM:
        from fedfactory.coordinator.flower_loading import load_flower_strategy

        load_flower_strategy(options)
    else:
        make_strategy(name, options)


def site_policy(config: RunConfig, share: Share | None, *, coordinator: str, operator: str) -> str:
    """Return the policy of one local site; keys by their fingerprints.

    It is what this run needs and no more: the public size is the site's share, which local mode
    made itself, and the caps are the run's own.
    """
    privacy = config.privacy
    epsilon = (privacy.target_epsilon if privacy else None) or ANY_EPSILON
    task = check_task(config.task_name, config.task_parameters)
    schema = task.schema(config.task_parameters)
    return policy_text(
        coordinators={COORDINATOR: coordinator},
        operators={OPERATOR: operator},
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
                    name: OneOf((config.task_parameters[name],)) for name in task.declarations
                },
            )
        },
        without_dp=None if privacy else ACKNOWLEDGED,
        epsilon_per_run=epsilon,
        epsilon_per_lineage=epsilon,
        delta=privacy.delta if privacy else UNUSED_DELTA,
        max_evaluations=config.rounds + 1,
        training={},
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
