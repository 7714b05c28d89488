"""The clauses, in the order in which they are asked; the first that fails decides.

Who asks comes first, then whether the order is in time and within its signed plan, then what this
site allows, and last what needs the site's own counts, or the base model's values. docs/policy.md
shows them as a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from site_agents.policy import plan_clauses, site_clauses
from site_agents.policy.facts import Check

Need = Literal["examples", "gpu_hours", "base"]


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that must hold, whatever the other clauses say.

    `key` is the dotted key of policy.yaml that decides; `plan.*` are terms of the signed plan,
    `order.*` and `sending.*` what came with it. `code` is a key of REFUSALS. `needs` names what the
    site must know beside the order. The first line of `check`'s docstring says what must hold.
    """

    key: str
    code: str
    check: Check
    needs: Need | None = None


CLAUSES: Final[tuple[Clause, ...]] = (
    Clause("coordinators", "not_authorised", plan_clauses.coordinators),
    Clause("operators", "not_authorised", plan_clauses.operators),
    Clause("order.names", "bad_order", plan_clauses.names),
    Clause("sending.expires_at", "expired", plan_clauses.expires_at),
    Clause("plan.digest", "outside_plan", plan_clauses.digest),
    Clause("plan.not_after", "outside_plan", plan_clauses.not_after),
    Clause("plan.coordinator", "outside_plan", plan_clauses.coordinator),
    Clause("plan.run_id", "outside_plan", plan_clauses.run_id),
    Clause("plan.sites", "outside_plan", plan_clauses.sites),
    Clause("plan.rounds", "outside_plan", plan_clauses.rounds),
    Clause("plan.evaluate", "outside_plan", plan_clauses.evaluate),
    Clause("plan.task", "outside_plan", plan_clauses.task),
    Clause("plan.task_parameters", "outside_plan", plan_clauses.task_parameters),
    Clause("plan.training", "outside_plan", plan_clauses.training),
    Clause("plan.privacy", "outside_plan", plan_clauses.privacy),
    Clause("plan.max_model_bytes", "outside_plan", plan_clauses.max_model_bytes),
    Clause("plan.initial", "outside_plan", plan_clauses.initial),
    Clause("tasks", "policy_task", site_clauses.tasks),
    Clause("tasks.parameters", "policy_parameters", site_clauses.task_parameters),
    Clause("training", "policy_parameters", site_clauses.training),
    Clause("strategies", "policy_strategy", site_clauses.strategies),
    Clause("privacy.dp", "policy_privacy", site_clauses.privacy_dp),
    Clause("privacy.delta", "policy_privacy", site_clauses.privacy_delta),
    Clause("privacy.epsilon_per_run", "policy_privacy", site_clauses.privacy_epsilon),
    Clause("privacy.max_evaluations", "policy_privacy", site_clauses.privacy_evaluations),
    Clause("limits.rounds", "policy_limits", site_clauses.limits_rounds),
    Clause("limits.plan_days", "plan_too_long", site_clauses.limits_plan_days),
    Clause("limits.max_model_bytes", "policy_limits", site_clauses.limits_model_bytes),
    Clause("limits.hours", "policy_limits", site_clauses.limits_hours),
    Clause("limits.gpu_hours_per_run", "policy_limits", site_clauses.limits_gpu_hours, "gpu_hours"),
    Clause("privacy.min_examples", "too_few_examples", site_clauses.min_examples, "examples"),
    Clause("privacy.min_local_steps", "policy_privacy", site_clauses.min_local_steps, "examples"),
    Clause("limits.max_base_abs", "policy_base", site_clauses.limits_base, "base"),
)
