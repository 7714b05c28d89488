"""What an operator asks for, worked out from the run's configuration: signed terms, plan, options.

Checks what can be checked without asking anybody. Starts nothing; starting.py makes the arrays.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedfactory.config import RunConfig
from fedfactory.contracts.errors import UnknownNameError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import RunTerms, SignedPlan
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.identity.signing import Signer
from fedfactory.tasks.table import check_task
from fedfactory.wire.membership import Member

LONGEST_RUN_S: Final = 30 * 24 * 3600.0
# A run that an outage suspended is still good when people come back to it.
SHORTEST_TERM_S: Final = 7 * 24 * 3600.0
# A strategy may send a site a base with tensors of its own beside the model.
MODEL_ROOM: Final = 1.5
# Stands for the first model until it is made.
_NOT_MADE: Final = BlobRef(digest=f"sha256:{'0' * 64}", bytes=1)


def run_plan(
    config: RunConfig,
    *,
    coordinator: str,
    run_id: str,
    signer: Signer,
    initial: BlobRef,
    central: BlobRef | None,
    now: float,
) -> RunPlan:
    """Return the run to submit, its terms under the operator's signature. `now` is Unix seconds."""
    terms = run_terms(
        config,
        coordinator=coordinator,
        run_id=run_id,
        initial=initial,
        nonce=secrets.token_hex(16),
        now=now,
    )
    return RunPlan(
        signed=SignedPlan(terms=terms, signature=signer.sign(terms)),
        seed=config.seed,
        rules=config.rules,
        evaluation=config.evaluation,
        central=central,
        checkpoints=config.checkpoints,
        max_examples=config.max_examples,
    )


def run_terms(
    config: RunConfig, *, coordinator: str, run_id: str, initial: BlobRef, nonce: str, now: float
) -> RunTerms:
    """Return what the operator signs: all that this run may ask. `now` is Unix seconds."""
    rules = config.rules
    phases = 2 * config.rounds + 2
    longest_phase_s = (rules.deadline_s + rules.lateness_s) * (1 + rules.retries)
    return RunTerms(
        coordinator=coordinator,
        run_id=run_id,
        sites=tuple(sorted(config.sites)),
        task=config.task_name,
        task_parameters=config.task_parameters,
        initial=initial,
        strategy=config.strategy_name,
        strategy_options=config.strategy_options,
        mode=config.mode,
        training=config.training,
        rounds=config.rounds,
        evaluate=config.evaluate,
        privacy=config.privacy,
        max_model_bytes=int(MODEL_ROOM * initial.bytes),
        max_update_norm_l2=config.max_update_norm_l2,
        nonce=nonce,
        not_after=now + min(LONGEST_RUN_S, SHORTEST_TERM_S + phases * longest_phase_s),
    )


def check_choices(config: RunConfig, *, any_strategy_class: bool) -> None:
    """Check strategy and task parameters before anything is made or sent.

    Raises:
        UsageError: a strategy or one of its fields that is not known, a parameter outside the
            task's schema, privacy that the task cannot keep, a public set that does not fit it.
    """
    from fedfactory.coordinator.aggregating.strategy_loading import check_strategy

    terms = run_terms(config, coordinator="", run_id="", initial=_NOT_MADE, nonce="", now=0.0)
    check_strategy(terms, any_class=any_strategy_class)
    task = check_task(config.task_name, config.task_parameters)
    if config.privacy is not None and (obstacle := task.private_obstacle(config.task_parameters)):
        raise UsageError(f"privacy=dp_sgd: {obstacle}")
    if config.central is not None:
        from fedfactory.tasks.public_set import read_public

        read_public(config.central, task, config.task_parameters)


def chosen_sites(
    members: Sequence[Member], asked: str | None, federation: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Return who takes part: names asked for ('a,b'), else the federation's, else all enrolled.

    Raises:
        UsageError: nobody is enrolled, or a name is not.
    """
    enrolled = sorted(m.name for m in members if m.role == "site" and m.status == "enrolled")
    if not enrolled:
        raise UsageError("no site is enrolled yet: `fedfactory invite NAME` invites one")
    names: Sequence[str] = enrolled
    if asked is not None:
        names = [name.strip() for name in asked.split(",") if name.strip()]
    elif federation is not None:
        names = federation.get("sites") or _first(enrolled, federation["count"])
    for name in names:
        if name not in enrolled:
            raise UnknownNameError("site", name, enrolled)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"sites {','.join(names)}: expected distinct names, at least one")
    return tuple(sorted(names))


def _first(enrolled: Sequence[str], count: int) -> Sequence[str]:
    if not 1 <= count <= len(enrolled):
        raise UsageError(f"federation.count={count}: {len(enrolled)} sites are enrolled")
    return enrolled[:count]
