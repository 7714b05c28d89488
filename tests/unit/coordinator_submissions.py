"""A submission that holds, and ways to change it."""

import dataclasses
import hashlib
import secrets
import time

import numpy as np

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.plans import RunTerms, SignedPlan
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, RunPlan
from fedfactory.identity.signing import Signer, new_signing_key
from fedfactory.wire.arrays import write_arrays
from fedfactory.wire.operations import Submission

SIGNER = Signer(new_signing_key())
COORDINATOR = "alliance"
SITES = ("cesga", "cyfronet", "lumi")
RULES = RoundRules(
    mode="sync",
    quorum=2,
    required=(),
    deadline_s=60.0,
    lateness_s=5.0,
    retries=1,
    select="all",
    per_round=None,
    extra=0,
    buffer=None,
)
EVALUATION = EvaluationRules(
    sites=True,
    central=False,
    metric="accuracy",
    higher_is_better=True,
    patience=None,
    min_delta=0.0,
    keep="last",
)


def plan_of(run_id="run-1", sites=SITES, **changes):
    values = {
        "run_id": run_id,
        "task": "echo",
        "strategy": "fedavg",
        "seed": 1,
        "rounds": 2,
        "sites": sites,
        "rules": RULES,
        "evaluation": EVALUATION,
        "privacy": None,
        "checkpoints": 2,
        "max_examples": {},
    }
    return RunPlan(**{**values, **changes})


def terms_of(plan, initial, **changes):
    values = {
        "coordinator": COORDINATOR,
        "run_id": plan.run_id,
        "sites": plan.sites,
        "task": plan.task,
        "task_parameters": {"parameters": 64},
        "initial": initial,
        "strategy": plan.strategy,
        "strategy_options": {"weighting": "examples"},
        "mode": plan.rules.mode,
        "training": TrainParameters(
            local_epochs=1, batch_size=1, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
        ),
        "rounds": plan.rounds,
        "evaluate": plan.evaluation.sites,
        "privacy": plan.privacy,
        "max_model_bytes": 2 * initial.bytes,
        "max_update_norm_l2": None,
        "nonce": secrets.token_hex(16),
        "not_after": time.time() + 3600,
    }
    return RunTerms(**{**values, **changes})


def signed_by(terms, signer=SIGNER):
    return SignedPlan(terms=terms, signature=signer.sign(terms))


def model(path):
    """Write a small model to a file and return its reference."""
    return write_arrays(path, {"weight": np.arange(16, dtype=np.float32)})


def submission(initial=None, *, plan=None, options=None, signer=SIGNER, central=None, **terms):
    initial = initial or BlobRef(digest="sha256:" + hashlib.sha256(b"m").hexdigest(), bytes=1000)
    plan = plan or plan_of()
    if options is not None:
        terms["strategy_options"] = options
    return Submission(
        signed=signed_by(terms_of(plan, initial, **terms), signer),
        plan=plan,
        central=central,
    )


def changed(value, **changes):
    return dataclasses.replace(value, **changes)
