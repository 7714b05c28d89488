"""Plans of runs for tests: three sites, two rounds, sync, everybody needed by no more than two."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, RunPlan

SITES = ("cesga", "cyfronet", "lumi")
RULES = RoundRules(
    mode="sync", quorum=2, required=(), deadline_s=30.0, lateness_s=0.0, retries=0, select="all",
    per_round=None, extra=0, buffer=None,
)  # fmt: skip
EVALUATION = EvaluationRules(
    sites=True, central=False, metric="loss", higher_is_better=False, patience=None,
    min_delta=0.0, keep="last",
)  # fmt: skip
PLAN = RunPlan(
    max_examples={},
    run_id="r", task="digits", strategy="fedavg", seed=1, rounds=2, sites=SITES, rules=RULES,
    evaluation=EVALUATION, privacy=None, checkpoints=3,
)  # fmt: skip


def run_plan(**changes: Any) -> RunPlan:
    """The plan with changes: of its own fields, of its rules' and of its evaluation's.

    `evaluate` stands for the evaluation's `sites`.
    """
    if "evaluate" in changes:
        changes["evaluation"] = replace(EVALUATION, sites=changes.pop("evaluate"))
    rules = {f.name: changes.pop(f.name) for f in fields(RoundRules) if f.name in changes}
    names = {f.name for f in fields(EvaluationRules)} - {"sites"}
    judged = {name: changes.pop(name) for name in names if name in changes}
    plan = replace(PLAN, **changes)
    return replace(
        plan, rules=replace(plan.rules, **rules), evaluation=replace(plan.evaluation, **judged)
    )


def blob(number: int) -> BlobRef:
    """A made-up reference."""
    return BlobRef(digest=f"sha256:{number:064x}", bytes=8)
