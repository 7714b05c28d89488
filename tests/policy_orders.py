"""A site's policy, a run's plan and an order that fit each other, to change one thing of."""

from __future__ import annotations

from dataclasses import replace

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, TrainParameters
from fedfactory.contracts.plans import OrderEnvelope, RunTerms, Signature, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from site_agents.policy import (
    AcknowledgedRisk,
    DataRule,
    Facts,
    OneOf,
    OperatorPin,
    Policy,
    Range,
    TaskRule,
    WithoutDp,
)


def pin(key: str, until: str = "2999-12-31") -> OperatorPin:
    """An operator's pin that nobody confirmed."""
    return OperatorPin(key=key, until=until, confirmed=None)


COORDINATOR_KEY = "sha256:" + "c" * 64
OPERATOR_KEY = "sha256:" + "0" * 64
NOW = 1_800_000_000.0
TRAINING = TrainParameters(
    local_epochs=2, batch_size=32, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)
PRIVACY = PrivacyPlan(
    target_epsilon=3.0,
    noise_multiplier=None,
    delta=1e-5,
    clip_norm_l2=1.0,
    grad_sample_mode="hooks",
    evaluation_noise_multiplier=20.0,
    evaluation_loss_clip=5.0,
)
WITHOUT_DP = WithoutDp(
    acknowledged_risk=AcknowledgedRisk(by="dpo", on="2026-11-21", reason="public data"),
    min_examples=100,
    min_local_steps=4,
)
BASE = BlobRef(digest="sha256:" + "b" * 64, bytes=400_000)
POLICY = Policy(
    coordinators={"lead": COORDINATOR_KEY},
    operators={"ada": pin(OPERATOR_KEY)},
    data={"scans": DataRule(lineage="patients", public_size=1000, unit="patient")},
    tasks={
        "digits": TaskRule(
            source="scans", parameters={"model": OneOf(("mlp",)), "hidden": Range(8, 64)}
        )
    },
    training={"local_epochs": Range(1, 4), "lr": Range(0.001, 1.0)},
    strategies=None,
    without_dp=None,
    epsilon_per_run=3.0,
    epsilon_per_lineage=10.0,
    delta=1e-5,
    max_evaluations=10,
    metrics={"loss": 0.01},
    rounds=10,
    gpu_hours_per_run=2.0,
    hours=None,
    max_model_bytes=1_000_000,
    max_base_abs={},
    egress="automatic",
    logs="none",
)
TERMS = RunTerms(
    coordinator="lead",
    run_id="20261121-0801-beef",
    sites=("cesga", "lumi"),
    task="digits",
    task_parameters={"model": "mlp", "hidden": 32},
    initial=BASE,
    strategy="fedavg",
    strategy_options={"weighting": "examples"},
    mode="sync",
    training=TRAINING,
    rounds=5,
    evaluate=True,
    privacy=PRIVACY,
    max_model_bytes=500_000,
    max_update_norm_l2=4.0,
    nonce="n1",
    not_after=NOW + 3600,
)
FACTS = Facts(
    now=NOW,
    local_minute=600,
    coordinator_key=COORDINATOR_KEY,
    operator_key=OPERATOR_KEY,
    revoked=frozenset(),
    site="cesga",
    train_examples=800,
    evaluate_examples=200,
    gpu_hours_of_run=0.5,
)
UNSIGNED = Signature(public_key="", value="")


def order_of(terms: RunTerms, **changes: object) -> Order:
    """The order for a training round of a plan, with changes."""
    order = Order(
        coordinator=terms.coordinator,
        run_id=terms.run_id,
        round=1,
        kind="train",
        site="cesga",
        task=terms.task,
        task_parameters=terms.task_parameters,
        training=terms.training,
        base=BASE,
        seed=7,
        privacy=terms.privacy,
        terms_digest=digest_of(terms),
    )
    return replace(order, **changes)


def sending_of(terms: RunTerms = TERMS, **changes: object) -> OrderEnvelope:
    """A sending of an order under a plan; `changes` are the order's."""
    return OrderEnvelope(
        order=order_of(terms, **changes),
        signed=SignedTerms(terms=terms, signature=UNSIGNED),
        number=1,
        expires_at=NOW + 60,
        receipt=None,
    )


def open_terms() -> RunTerms:
    """A plan without differential privacy."""
    return replace(TERMS, privacy=None)
