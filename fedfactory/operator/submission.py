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
from fedfactory.contracts.plans import SignedTerms
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.identity.signing import Signer
from fedfactory.tasks.table import check_task
from fedfactory.wire.membership import Member

LONGEST_RUN_S: Final = 30 * 24 * 3600.0
# A run that an outage suspended is still good when people come back to it.
SHORTEST_TERM_S: Final = 7 * 24 * 3600.0


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
    terms = config.terms(
        coordinator=coordinator,
        run_id=run_id,
        initial=initial,
        nonce=secrets.token_hex(16),
        not_after=now + _term_s(config),
    )
    return config.plan(SignedTerms(terms=terms, signature=signer.sign(terms)), central)


def _term_s(config: RunConfig) -> float:
    """Return how long the signed terms hold, in seconds."""
    rules = config.rules
    phases = 2 * config.rounds + 2
    longest_phase_s = (rules.deadline_s + rules.lateness_s) * (1 + rules.retries)
    return min(LONGEST_RUN_S, SHORTEST_TERM_S + phases * longest_phase_s)


def check_choices(config: RunConfig) -> None:
    """Check strategy and task parameters before anything is made or sent.

    Any strategy class that can be imported here passes: which of them a coordinator makes is its
    own setting (`strategy_classes`), which it checks when the run is submitted.

    Raises:
        UsageError: a strategy or one of its fields that is not known, a parameter outside the
            task's schema, privacy that the task cannot keep, a public set that does not fit it.
    """
    from fedfactory.coordinator.aggregating.strategy_loading import check_strategy

    check_strategy(config.draft().terms, any_class=True)
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
        names = _of_federation(federation)
    for name in names:
        if name not in enrolled:
            raise UnknownNameError("site", name, enrolled)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"sites {','.join(names)}: expected distinct names, at least one")
    return tuple(sorted(names))


def _of_federation(federation: Mapping[str, Any]) -> Sequence[str]:
    if "sites" not in federation:
        raise UsageError(
            f"federation={federation['name']} is for `fedfactory local` alone: its sites are no"
            " machines; name enrolled ones (--sites A,B), or leave it out for all that are enrolled"
        )
    names: Sequence[str] = federation["sites"]
    return names
