"""The site's judgement on an order: pure, and never loosened by what a coordinator says.

Checks run in the order of CLAUSES; the first that fails decides. What the clauses say is the
site's own configuration. Values of parameters are judged by the task's own schema before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.orders import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What this site allows. Sizes in bytes, counts whole numbers.

    `metrics` are the only metrics that may leave; `privacy` the modes the site can give.
    """

    tasks: tuple[str, ...]
    privacy: tuple[str, ...]
    metrics: tuple[str, ...]
    max_rounds: int
    max_local_epochs: int
    max_model_bytes: int
    min_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`code` is None when the order is allowed, else a key of REFUSALS; `clause` decided."""

    code: str | None
    clause: str


def _task(policy: Policy, order: Order, examples: int | None) -> str | None:
    del examples
    return None if order.task in policy.tasks else "policy_task"


def _privacy(policy: Policy, order: Order, examples: int | None) -> str | None:
    del examples
    return None if order.privacy in policy.privacy else "policy_privacy"


def _rounds(policy: Policy, order: Order, examples: int | None) -> str | None:
    del examples
    return None if 1 <= order.round <= policy.max_rounds else "policy_parameters"


def _epochs(policy: Policy, order: Order, examples: int | None) -> str | None:
    del examples
    if order.training is None or order.training.local_epochs <= policy.max_local_epochs:
        return None
    return "policy_parameters"


def _model_size(policy: Policy, order: Order, examples: int | None) -> str | None:
    del examples
    return None if order.base.bytes <= policy.max_model_bytes else "policy_parameters"


def _examples(policy: Policy, order: Order, examples: int | None) -> str | None:
    del order
    return "too_few_examples" if examples is not None and examples < policy.min_examples else None


CLAUSES: Final[Mapping[str, Callable[[Policy, Order, int | None], str | None]]] = {
    "tasks": _task,
    "privacy": _privacy,
    "max_rounds": _rounds,
    "max_local_epochs": _epochs,
    "max_model_bytes": _model_size,
    "min_examples": _examples,
}


def judge(policy: Policy, order: Order, *, examples: int | None) -> Verdict:
    """Judge an order; `examples` counts the records it would work on, None if it works on none."""
    for clause, check in CLAUSES.items():
        if code := check(policy, order, examples):
            return Verdict(code=code, clause=clause)
    return Verdict(code=None, clause="all")
