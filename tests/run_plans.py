"""Plans of runs for tests: three sites, two rounds, sync, everybody needed by no more than two."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.plans import RunTerms, Signature, SignedTerms
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, RunPlan

SITES = ("cesga", "cyfronet", "lumi")


def blob(number: int) -> BlobRef:
    """A made-up reference."""
    return BlobRef(digest=f"sha256:{number:064x}", bytes=8)


RULES = RoundRules(
    quorum=2, required=(), deadline_s=30.0, lateness_s=0.0, retries=0, select="all",
    per_round=None, extra=0, buffer=None,
)  # fmt: skip
EVALUATION = EvaluationRules(
    metric="loss", higher_is_better=False, patience=None, min_delta=0.0, keep="last",
)  # fmt: skip
TRAINING = TrainParameters(
    local_epochs=1, batch_size=1, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
TERMS = RunTerms(
    coordinator="hub", run_id="r", sites=SITES, task="digits", task_parameters={},
    initial=blob(0), strategy="fedavg", strategy_options={"weighting": "examples"}, mode="sync",
    training=TRAINING, rounds=2, evaluate=True, privacy=None, max_model_bytes=1 << 30,
    max_update_norm_l2=None, nonce="0" * 16, not_after=4e9,
)  # fmt: skip
UNSIGNED = Signature(public_key="", value="")  # nobody checks it where these plans go
PLAN = RunPlan(
    signed=SignedTerms(terms=TERMS, signature=UNSIGNED), seed=1, rules=RULES,
    evaluation=EVALUATION, central=None, checkpoints=3, max_examples={},
)  # fmt: skip


def run_plan(plan: RunPlan = PLAN, **changes: Any) -> RunPlan:
    """A plan with changes: of its own fields, of its terms', its rules' and its evaluation's."""
    parts = {
        name: replace(part, **{f.name: changes.pop(f.name) for f in fields(part) if f.name in changes})
        for name, part in (
            ("terms", plan.terms), ("rules", plan.rules), ("evaluation", plan.evaluation)
        )
    }  # fmt: skip
    signed = replace(plan.signed, terms=parts.pop("terms"))
    return replace(plan, **{"signed": signed, **parts, **changes})
